//! Bodies that cost more to read than to send.
