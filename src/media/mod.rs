//! Bytes on media and the structs they mean.
