"""DICOM: what modalities and PACS see of the node."""
