"""PACS gateway: CT series come in by DICOM C-STORE, reports and masks go out as Structured Report and Segmentation."""
