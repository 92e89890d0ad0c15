//! Image references, normalised as Docker does: `nginx` is `docker.io/library/nginx:latest`.

use oci_spec::distribution::{ParseError, Reference};

use super::ImageError;

/// Parses a reference and fills in registry, `library/` and `:latest`.
pub fn parse(reference: &str) -> Result<Reference, ImageError> {
    reference
        .parse()
        .map_err(|error: ParseError| ImageError::InvalidReference {
            reference: reference.to_owned(),
            cause: error.to_string(),
        })
}

/// The full form of a reference.
pub fn normalise(reference: &str) -> Result<String, ImageError> {
    parse(reference).map(|reference| reference.whole())
}

/// What a reference names without tag and digest, in full: `docker.io/library/nginx`.
pub fn repository(reference: &str) -> Result<String, ImageError> {
    let parsed = parse(reference)?;
    Ok(format!("{}/{}", parsed.registry(), parsed.repository()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        for (short, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.29", "docker.io/library/nginx:1.29"),
            ("team/app", "docker.io/team/app:latest"),
            (
                "registry.example:5000/app:v1",
                "registry.example:5000/app:v1",
            ),
            ("gantry.local/web:v1", "gantry.local/web:v1"),
        ] {
            assert_eq!(normalise(short).expect(short), full);
            let (name, _) = full.rsplit_once(':').expect("a tag");
            assert_eq!(repository(short).expect(short), name);
        }
    }

    #[test]
    fn what_cannot_be_a_reference_is_refused_with_its_name() {
        for bad in ["", "Upper/Case", "a b", "x@sha256:12"] {
            let error = normalise(bad).expect_err(bad).to_string();
            assert!(
                error.starts_with(&format!("couldn't parse image name \"{bad}\"")),
                "{error}"
            );
        }
    }
}
