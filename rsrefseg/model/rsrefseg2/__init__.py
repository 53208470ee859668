"""The stages of RSRefSeg 2 (arXiv 2507.06231) that RSRefSeg does not share: prompter, SAM 2.1's encoder and decoder."""
