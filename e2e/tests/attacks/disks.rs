//! Full disks, and what other users of the machine find on it.
