//! What can go wrong with images.

/// Errors of image handling, worded for a pod's status and Events.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference cannot be parsed; Kubernetes' reason is `InvalidImageName`.
    #[error("couldn't parse image name \"{reference}\": {cause}")]
    InvalidReference {
        /// As written.
        reference: String,
        /// Why.
        cause: String,
    },
    /// The registry answered with an error, in its words.
    #[error("failed to pull image \"{reference}\": {cause}")]
    Pull {
        /// As written.
        reference: String,
        /// The registry's words, or the transport's.
        cause: String,
    },
    /// Content does not match its digest, or cannot be decompressed or unpacked.
    #[error("image \"{reference}\": layer {digest} is corrupt: {cause}")]
    Corrupt {
        /// As written.
        reference: String,
        /// The content's digest.
        digest: String,
        /// What was found.
        cause: String,
    },
    /// No such image here.
    #[error("image \"{0}\" is not present on this node")]
    NotFound(String),
    /// It is used by a container.
    #[error("image \"{0}\" is in use by a running container")]
    InUse(String),
    /// The archive is neither an OCI layout nor a docker archive.
    #[error("{path}: {cause}")]
    Archive {
        /// The archive.
        path: String,
        /// Why, and what to do.
        cause: String,
    },
    /// The file system or the kernel refused.
    #[error("{doing}")]
    Io {
        /// What was being done, to which object.
        doing: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
