"""Slides in S3, on a local server: tiled as if they lay here, and what is missing is said plainly."""

import subprocess
import sys

import numpy as np
import pytest

from jobs.manifest import read_source
from tests.slides import tissue_like, write_svs
from tiling.patches import open_patches
from wsi.errors import ManifestError, SlideError
from wsi.source import open_source

DATA = np.random.default_rng(0).integers(0, 256, 3_000_001, np.uint8).tobytes()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Puts objects into a bucket named slides of a local S3 server, found through the environment as users do."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    settings = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="slides")
        yield lambda key, data: client.put_object(Bucket="slides", Key=key, Body=data)
    server.stop()


def test_slides_in_s3_are_tiled_as_if_they_lay_here(s3, tmp_path):
    path = write_svs(tmp_path / "a.svs", tissue_like(1500, 1200))
    s3("cohort/a.svs", path.read_bytes())
    (tmp_path / "there.csv").write_text("slide_id,path\na,s3://slides/cohort/a.svs\n")
    (tmp_path / "here.csv").write_text("slide_id,path\na,a.svs\n")
    stores = []
    for name in ("there", "here"):
        command = [sys.executable, "-c", "from cli.main import main; main()", "tile", str(tmp_path / f"{name}.csv")]
        done = subprocess.run([*command, "-o", str(tmp_path / name), "--workers", "1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        stores.append(open_patches(tmp_path / name / "tiles" / "a.zarr"))
    there, here = stores
    assert len(there.grid) > 0
    assert (there.grid.xy == here.grid.xy).all()
    assert there.attrs["fingerprint"] == here.attrs["fingerprint"]


def test_an_s3_object_that_is_replaced_while_it_is_read_is_an_error(s3):
    s3("b.bin", DATA)
    file = open_source("s3://slides/b.bin")
    assert file.read_at(5, 100) == DATA[5:105]
    s3("b.bin", DATA[::-1])
    with pytest.raises(SlideError, match="changed while it was read"):
        file.read_at(2_000_000, 100)
    assert open_source("s3://slides/b.bin").read_at(5, 100) == DATA[::-1][5:105]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://slides/none.svs", "there is no such file"),
        ("s3://nobucket/none.svs", "there is no such file"),
        ("s3://slides/cohort", "this is a folder"),
    ],
)
def test_what_is_not_in_s3_is_said_plainly(s3, url, problem):
    s3("cohort/notes.txt", b"x")
    with pytest.raises(SlideError, match=problem):
        open_source(url)


def test_a_folder_and_a_manifest_in_s3_name_slides(s3):
    s3("empty/notes.txt", b"x")
    for name in ("b.svs", "a.tif", "notes.txt", "list.csv"):
        s3(f"some/{name}", b"slide_id,path\nx,b.svs\ny,s3://slides/other.svs\n")
    found = [(record.slide_id, record.path) for record in read_source("s3://slides/some/")]
    assert found == [("a", "s3://slides/some/a.tif"), ("b", "s3://slides/some/b.svs")]
    listed = [(record.slide_id, record.path) for record in read_source("s3://slides/some/list.csv")]
    assert listed == [("x", "s3://slides/some/b.svs"), ("y", "s3://slides/other.svs")]
    assert read_source("s3://slides/some/b.svs")[0].slide_id == "b"
    with pytest.raises(ManifestError, match="no slides"):
        read_source("s3://slides/empty/")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_source("s3://slides/none.csv")


def test_without_credentials_the_remedy_names_them(s3, monkeypatch):
    import fsspec

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(SlideError, match="AWS_PROFILE"):
        open_source("s3://slides/b.bin")
    fsspec.filesystem("s3").clear_instance_cache()
