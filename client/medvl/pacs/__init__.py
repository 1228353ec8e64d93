"""PACS gateway: CT series come in by DICOM C-STORE; reports, masks and measurements go out as SR, SEG and SR."""
