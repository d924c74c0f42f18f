// Objects of `predict --format=geojson` (or geojson.gz) for the image that is open in QuPath.
// Run for project makes it for all images of a project.
def out = '/path/to/out'  // the folder of predict --out

def name = GeneralTools.stripExtension(getCurrentServer().getMetadata().getName())
def file = ['.geojson', '.geojson.gz'].collect { new File(out, name + '_objects' + it) }.find { it.exists() }
def stream = file.newInputStream()
if (file.name.endsWith('.gz')) stream = new java.util.zip.GZIPInputStream(stream)
addObjects(qupath.lib.io.PathIO.readObjectsFromGeoJSON(stream))
fireHierarchyUpdate()
