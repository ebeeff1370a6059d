//! TLS for the listeners: certificates, keys, reload.
