"""DICOM over HTTP: DICOMweb, and orders as JSON."""
