//! For which images on a node pods must show that they may pull them: a kubelet's
//! `imagePullCredentialsVerificationPolicy` and `preloadedImagesVerificationAllowlist`, with Kubernetes' names.

use std::str::FromStr;

/// When an image that is on the node is not simply used. What was pulled with credentials of a pod is used by other pods
/// only when they have the same, or when the registry lets them pull it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerificationPolicy {
    /// Whoever names it uses it.
    NeverVerify,
    /// What this agent has not pulled, but an administrator brought, is anybody's.
    #[default]
    NeverVerifyPreloadedImages,
    /// What is on a list is anybody's.
    NeverVerifyAllowlistedImages,
    /// Everybody shows it for everything.
    AlwaysVerify,
}

/// By their names.
static POLICIES: [(&str, VerificationPolicy); 4] = [
    ("NeverVerify", VerificationPolicy::NeverVerify),
    (
        "NeverVerifyPreloadedImages",
        VerificationPolicy::NeverVerifyPreloadedImages,
    ),
    (
        "NeverVerifyAllowlistedImages",
        VerificationPolicy::NeverVerifyAllowlistedImages,
    ),
    ("AlwaysVerify", VerificationPolicy::AlwaysVerify),
];

/// A text that is none of the policies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no policy: NeverVerify, NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages or AlwaysVerify"
)]
pub struct UnknownPolicy(String);

impl FromStr for VerificationPolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = POLICIES.iter().find(|(name, _)| *name == text);
        let found = found.ok_or_else(|| UnknownPolicy(text.to_owned()));
        found.map(|(_, policy)| *policy)
    }
}

impl VerificationPolicy {
    /// As it is written on a command line.
    pub fn text(self) -> &'static str {
        let found = POLICIES.iter().find(|(_, policy)| *policy == self);
        found.map_or("", |(name, _)| *name)
    }
}

/// Repositories: one by its full name, such as `docker.io/library/nginx`, or with `/*` at the end all below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryPattern {
    begin: String,
    whole: bool,
}

/// What cannot be on the list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" names no repositories: write one in full, without tag and digest, such as docker.io/library/nginx, or registry.example/team/*"
)]
pub struct NoRepository(String);

impl FromStr for RepositoryPattern {
    type Err = NoRepository;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NoRepository(text.to_owned());
        let (begin, whole) = match text.strip_suffix('*') {
            Some(begin) if begin.len() > 1 && begin.ends_with('/') => (begin, false),
            Some(_) => return Err(wrong()),
            None => (text, true),
        };
        let odd = |letter: char| letter == '*' || letter.is_whitespace();
        let full = || gantry_cri::image::repository(begin).is_ok_and(|name| name == begin);
        match begin.contains(odd) || (whole && !full()) {
            true => Err(wrong()),
            false => Ok(Self {
                begin: begin.to_owned(),
                whole,
            }),
        }
    }
}

impl RepositoryPattern {
    fn matches(&self, repository: &str) -> bool {
        match self.whole {
            true => repository == self.begin,
            false => repository.starts_with(&self.begin),
        }
    }

    /// As it is written on a command line.
    pub fn text(&self) -> String {
        format!("{}{}", self.begin, if self.whole { "" } else { "*" })
    }
}

/// The policy, and the list of [`VerificationPolicy::NeverVerifyAllowlistedImages`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullVerification {
    /// For which images.
    pub policy: VerificationPolicy,
    /// Repositories that are anybody's.
    pub allowlist: Vec<RepositoryPattern>,
}

impl PullVerification {
    /// Whether a pod has to show that it may pull an image of this repository. `pulled` says whether this agent has pulled
    /// the image that is there, or is about to.
    pub(crate) fn requires(&self, repository: &str, pulled: bool) -> bool {
        match self.policy {
            VerificationPolicy::NeverVerify => false,
            VerificationPolicy::NeverVerifyPreloadedImages => pulled,
            VerificationPolicy::NeverVerifyAllowlistedImages => {
                let mut allowed = self.allowlist.iter();
                !allowed.any(|pattern| pattern.matches(repository))
            }
            VerificationPolicy::AlwaysVerify => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_kubernetes_names() {
        for (name, policy) in POLICIES {
            assert_eq!(name.parse::<VerificationPolicy>(), Ok(policy));
            assert_eq!(policy.text(), name);
        }
        assert!("Sometimes".parse::<VerificationPolicy>().is_err());
        let default = VerificationPolicy::default();
        assert_eq!(default, VerificationPolicy::NeverVerifyPreloadedImages);
    }

    #[test]
    fn the_list_has_whole_names_and_paths() {
        let matches = |pattern: &str, repository: &str| {
            let pattern: RepositoryPattern = pattern.parse().unwrap();
            pattern.matches(repository)
        };
        assert!(matches(
            "docker.io/library/nginx",
            "docker.io/library/nginx"
        ));
        assert!(!matches(
            "docker.io/library/nginx",
            "docker.io/library/nginx-2"
        ));
        assert!(matches("r.example/team/*", "r.example/team/a/b"));
        assert!(!matches("r.example/team/*", "r.example/team-2/a"));
        assert!(matches("r.example:5000/*", "r.example:5000/a"));
        for wrong in [
            "",
            "*",
            "/*",
            "nginx",
            "library/nginx",
            "r.example/a:1",
            "r.example/a*",
            "r.example/*/a",
            "r.example/*/*",
            " r.example/a",
            "r.example/a /*",
        ] {
            assert!(wrong.parse::<RepositoryPattern>().is_err(), "{wrong:?}");
        }
        let pattern: RepositoryPattern = "r.example/team/*".parse().unwrap();
        assert_eq!(pattern.text(), "r.example/team/*");
    }

    #[test]
    fn who_has_to_show_what() {
        for (policy, of_preloaded, of_pulled, of_listed) in [
            (VerificationPolicy::NeverVerify, false, false, false),
            (
                VerificationPolicy::NeverVerifyPreloadedImages,
                false,
                true,
                true,
            ),
            (
                VerificationPolicy::NeverVerifyAllowlistedImages,
                true,
                true,
                false,
            ),
            (VerificationPolicy::AlwaysVerify, true, true, true),
        ] {
            let verification = PullVerification {
                policy,
                allowlist: vec!["r.example/listed".parse().unwrap()],
            };
            let found = [
                verification.requires("r.example/a", false),
                verification.requires("r.example/a", true),
                verification.requires("r.example/listed", true),
            ];
            assert_eq!(found, [of_preloaded, of_pulled, of_listed], "{policy:?}");
        }
    }
}
