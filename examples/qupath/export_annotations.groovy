/*
 * Export the annotations of the open image as GeoJSON for slidestream. QuPath 0.4 or newer.
 *
 *   Automate > Script editor > Run, or "Run for project"; or without a window:
 *   QuPath script --project=cohort.qpproj --args=/data/annotations export_annotations.groovy
 *
 * Argument: the folder to write; without it, the folder `annotations` in the project. A file a slide, named after the
 * slide's id. The engine takes the folder as it is:
 *
 *   wsi tile slides.csv -o run --include annotations        only tiles inside
 *   wsi review import run annotations --who NAME            as a review: ids that it knows are its own suggestions
 *   wsi finetune slides.csv --labels regions --regions annotations --run run
 */
def given = binding.hasVariable('args') ? binding.getVariable('args') : null
def folder = given ? given[0] : buildFilePath(PROJECT_BASE_DIR, 'annotations')
mkdirs(folder)

def name = getCurrentServer().getMetadata().getName()
def plain = name.replaceAll(/(?i)\.(ome\.tiff?|ome\.zarr|svs|ndpi|mrxs|scn|bif|vms|vsi|czi|qptiff|dcm|zarr|tiff?)( - .*)?$/, '')
def drawn = getAnnotationObjects()
def path = buildFilePath(folder, plain + '.geojson')
exportObjectsToGeoJson(drawn, path, 'FEATURE_COLLECTION')
println "slidestream: ${drawn.size()} annotations of ${name} in ${path}"
