//! The fan-out bus of a node: live messages from the cluster to many readers, best effort.
