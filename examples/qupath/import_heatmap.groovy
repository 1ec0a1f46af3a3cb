/*
 * Import slidestream's heatmap, regions or contours into the open image. QuPath 0.4 or newer.
 *
 *   Automate > Script editor > Run, or "Run for project"; or without a window:
 *   QuPath script --project=cohort.qpproj --save --args=/data/run/heatmaps/tumor --args=regions import_heatmap.groovy
 *
 * First argument: the folder of a run's heatmaps, run/heatmaps/<model>; without it, the folder `heatmaps` in the project.
 * Second: tiles (as without it), regions or contours: the formats geojson, regions and contours of `wsi heatmap`.
 * The image's name without its ending is the slide's id. Objects of an earlier import of this kind are replaced.
 */
def given = binding.hasVariable('args') ? binding.getVariable('args') : null
def folder = given ? given[0] : buildFilePath(PROJECT_BASE_DIR, 'heatmaps')
def kind = given && given.length > 1 ? given[1] : 'tiles'

def middle = [tiles: '', regions: '.regions', contours: '.contours'][kind]
if (middle == null) {
    println "slidestream: '${kind}' is unknown; give tiles, regions or contours"
    return
}
def name = getCurrentServer().getMetadata().getName()
// of a file with several images QuPath adds " - " and which one
def plain = name.replaceAll(/(?i)\.(ome\.tiff?|ome\.zarr|svs|ndpi|mrxs|scn|bif|vms|vsi|czi|qptiff|dcm|zarr|tiff?)( - .*)?$/, '')
def start = new File(folder, plain + middle)
def whole = new File(start.path + '.geojson.gz')
def files = []
if (whole.exists())
    files << whole
else if (middle.isEmpty())
    for (int part = 1; new File(String.format('%s.part-%02d.geojson.gz', start.path, part)).exists(); part++)
        files << new File(String.format('%s.part-%02d.geojson.gz', start.path, part))
if (files.isEmpty()) {
    println "slidestream: no ${whole} for the image ${name}"
    return
}

def read = []
for (file in files)
    read.addAll(qupath.lib.io.PathIO.readObjects(file))
// ids are the same in every import, so what is there already is known by them
def ids = read.collect { it.getID() } as Set
def before = getAllObjects(false).findAll { ids.contains(it.getID()) }
removeObjects(before, true)
addObjects(read)
println "slidestream: ${read.size()} objects from ${files.size()} file(s) into ${name}, ${before.size()} replaced"
