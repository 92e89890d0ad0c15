//! A node, or somebody with its token, against the cluster.
