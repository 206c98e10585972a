"""sononode: a DICOM-native integration node for breast ultrasound."""
