//! L3: the HTTP front door.
