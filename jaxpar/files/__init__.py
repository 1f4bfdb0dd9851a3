"""Files of text as they lie on the disk: found, unpacked, checked and cut."""
