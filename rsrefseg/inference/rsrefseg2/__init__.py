"""The stages that only RSRefSeg 2 has, in their exported form."""
