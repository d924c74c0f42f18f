// An image with what `predict --format=tiff,roi` found in it: labels in colours, ROIs, measurements.
image = File.openDialog("The image that was segmented");
out = getDirectory("The folder of predict --out");
name = File.getNameWithoutExtension(image);
open(out + name + "_label.tif");
run("glasbey_on_dark");  // a colour for each number
open(image);
roiManager("reset");
roiManager("open", out + name + "_rois.zip");  // the name of a ROI is its number in the label
roiManager("show all with labels");
roiManager("measure");
