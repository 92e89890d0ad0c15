//! This machine: whether it has what a node and a server need.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use gantry_network::{NetworkError, OverlaySettings, Protocol};
use ipnet::Ipv4Net;

use super::finding::Finding;
use super::ports;
use crate::cluster::{LOCAL_API, METRICS, agent_config};

/// Addresses of services, unless a cluster says otherwise.
pub(super) const SERVICES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12);
/// Of Linux.
const OLDEST: (u32, u32) = (5, 10);
const API_PORT: u16 = 6443;

/// What is looked at.
pub(super) struct Machine<'a> {
    pub(super) data_dir: &'a Path,
    /// Where the cluster that was asked keeps its state, if that is on this machine.
    pub(super) cluster_dir: Option<PathBuf>,
    /// The addresses of each of its nodes' pods.
    pub(super) node_pods: Vec<Ipv4Net>,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) pod_cidr: Ipv4Net,
    pub(super) service_cidr: Ipv4Net,
}

impl Machine<'_> {
    pub(super) async fn check(&self) -> Vec<Finding> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut findings = vec![kernel(release.trim())];
        if rustix::process::geteuid().is_root() {
            findings.insert(0, Finding::ok("root", "this is root"));
            findings.push(cgroups().await);
            findings.extend(self.trials().await);
        } else {
            findings.insert(
                0,
                Finding::warning(
                    "root",
                    "this is not root, and servers and nodes need it to be",
                    "run them, and 'gantry doctor', with sudo",
                ),
            );
            let needed = ["cgroups", "overlayfs", "network"];
            findings.extend(needed.map(Finding::needs_root));
        }
        findings.push(nft());
        findings.extend(held());
        findings.push(self.mtu());
        findings.push(self.routes());
        findings.push(clock());
        findings
    }

    /// What is tried out in a directory of its own, on the disk of the data directory.
    async fn trials(&self) -> Vec<Finding> {
        let scratch = match Scratch::beside(self.data_dir) {
            Ok(scratch) => scratch,
            Err(error) => {
                return vec![Finding::failed(
                    "data directory",
                    format!("{error:#}"),
                    "make it writable, or choose another with --data-dir",
                )];
            }
        };
        let tried = tokio::task::spawn_blocking(move || {
            let overlay = gantry_image::try_overlay(&scratch.0);
            let network = gantry_network::try_out(&scratch.0.join("network"));
            let place = scratch.0.parent().unwrap_or(Path::new("/")).to_owned();
            (place, overlay, network)
        });
        let (place, overlay, network) = match tried.await {
            Ok(tried) => tried,
            Err(error) => {
                return vec![Finding::failed(
                    "network",
                    format!("trying it out: {error}"),
                    "report this: it is a fault of Gantry's",
                )];
            }
        };
        let mut findings = vec![match overlay {
            Ok(()) => Finding::ok("overlayfs", format!("works on {}", place.display())),
            Err(error) => Finding::failed(
                "overlayfs",
                format!("mounting an overlay in {}: {error}", place.display()),
                "load the module overlay (modprobe overlay), and keep the data directory on ext4, xfs or btrfs",
            ),
        }];
        findings.extend(network.into_iter().map(|trial| match trial.outcome {
            Ok(()) => Finding::ok(trial.what, "works"),
            Err(error) if trial.is_optional => {
                Finding::warning(trial.what, words(&error), remedy(trial.what))
            }
            Err(error) => Finding::failed(trial.what, words(&error), remedy(trial.what)),
        }));
        findings
    }

    fn mtu(&self) -> Finding {
        match gantry_network::pod_mtu(self.address) {
            Ok((link, mtu)) if link.is_empty() => Finding::warning(
                "MTU",
                format!("there is no way to other machines; alone, pods would get {mtu} bytes"),
                "give the machine a default route, or name its address with --address",
            ),
            Ok((link, mtu)) => Finding::ok("MTU", format!("{link} leaves {mtu} bytes for pods")),
            Err(error) => Finding::failed(
                "MTU",
                words(&error),
                "raise the MTU of that link on this machine and on the others",
            ),
        }
    }

    fn routes(&self) -> Finding {
        let directories = std::iter::once(self.data_dir).chain(self.cluster_dir.as_deref());
        let prefixes: Vec<String> = directories
            .map(|directory| agent_config(directory).network_prefix)
            .collect();
        let ranges = [self.pod_cidr, self.service_cidr];
        match gantry_network::routes_into(&ranges, &prefixes) {
            Ok(mut routes) => {
                leave_out_own(&mut routes, &self.node_pods);
                overlap(&routes, self.pod_cidr, self.service_cidr)
            }
            Err(error) => {
                Finding::warning("routes", words(&error), "run 'gantry doctor' with sudo")
            }
        }
    }
}

/// A directory that goes with its value.
struct Scratch(PathBuf);

impl Scratch {
    /// In a directory, or in the nearest one above it that exists.
    fn beside(directory: &Path) -> std::io::Result<Self> {
        let absolute = std::path::absolute(directory)?;
        let existing = absolute.ancestors().find(|above| above.is_dir());
        let existing = existing.unwrap_or(Path::new("/"));
        let path = existing.join(format!(".gantry-doctor-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| {
            std::io::Error::new(
                error.kind(),
                format!("creating {}: {error}", path.display()),
            )
        })?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, directory = %self.0.display(), "a directory stays behind");
        }
    }
}

/// An error with its causes.
fn words(error: &NetworkError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// What to do where the error itself does not say it.
fn remedy(what: &str) -> String {
    match what {
        "network namespaces" => "run on a kernel with CONFIG_NET_NS, with CAP_SYS_ADMIN".to_owned(),
        "bridge" | "veth" | "vxlan" => {
            format!("load the module {what} (modprobe {what}), or use a kernel that has it")
        }
        "ip_forward" => "set it on the host: sysctl -w net.ipv4.ip_forward=1".to_owned(),
        "held connections" => {
            "load nfnetlink_log and nft_log, or use a kernel that has them: without, connections from this node to what \
             idles are refused, and wake nothing"
                .to_owned()
        }
        "nft" => "install the Debian package nftables".to_owned(),
        _ => "load what is missing (modprobe), or use a kernel built with it".to_owned(),
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(str::parse);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    };
    let message = format!("Linux {release}");
    match version {
        Some(version) if version >= OLDEST => Finding::ok("kernel", message),
        _ => Finding::failed(
            "kernel",
            format!(
                "{message} is older than {}.{}, or something else",
                OLDEST.0, OLDEST.1
            ),
            "use a newer kernel",
        ),
    }
}

async fn cgroups() -> Finding {
    let group = format!("/gantry-doctor-{}", std::process::id());
    match gantry_runtime::try_cgroups(Path::new(&group)).await {
        Ok((version, missing)) => controllers(version, &missing),
        Err(error) => Finding::failed(
            "cgroups",
            format!("making a group: {error}"),
            "mount the hierarchies below /sys/fs/cgroup, writable",
        ),
    }
}

fn controllers(version: &str, missing: &[&str]) -> Finding {
    if missing.is_empty() {
        return Finding::ok("cgroups", format!("{version}, with every controller"));
    }
    let message = format!("{version}, without {}", missing.join(", "));
    let fix = "switch them on for this machine (kernel options, or the container it runs in)";
    // Without these, pods run and their processes are not counted or frozen.
    let optional = ["pids", "freezer", "devices"];
    match missing.iter().all(|missing| optional.contains(missing)) {
        true => Finding::warning("cgroups", message, fix),
        false => Finding::failed("cgroups", message, fix),
    }
}

fn nft() -> Finding {
    match gantry_network::nft_version() {
        Ok(version) => Finding::ok("nft version", version),
        Err(error) => Finding::failed("nft version", words(&error), remedy("nft")),
    }
}

fn held() -> Vec<Finding> {
    let port = |address: &str| {
        address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or_default()
    };
    vec![
        ports::check(
            Protocol::Tcp,
            API_PORT,
            "the API server",
            "listen elsewhere with --listen",
        ),
        ports::check(
            Protocol::Tcp,
            port(LOCAL_API),
            "the API on each node",
            "listen elsewhere with --local-api",
        ),
        ports::check(
            Protocol::Tcp,
            port(METRICS),
            "a node's metrics",
            "listen elsewhere with --metrics",
        ),
        ports::check(
            Protocol::Udp,
            OverlaySettings::PORT,
            "packets between nodes (VXLAN)",
            "move what holds it: all nodes use this port",
        ),
    ]
}

/// Leaves out the routes of the cluster's node which this machine is, wherever that keeps its state: all of the link that
/// leads to a node's pods.
fn leave_out_own(routes: &mut Vec<(Ipv4Net, String)>, node_pods: &[Ipv4Net]) {
    let leads = |(route, link): &&(Ipv4Net, String)| {
        gantry_agent::is_agents_link(link) && node_pods.contains(route)
    };
    let own: BTreeSet<String> = routes
        .iter()
        .filter(leads)
        .map(|(_, link)| link.clone())
        .collect();
    routes.retain(|(_, link)| !own.contains(link));
}

fn overlap(routes: &[(Ipv4Net, String)], pods: Ipv4Net, services: Ipv4Net) -> Finding {
    let Some((route, link)) = routes.first() else {
        return Finding::ok(
            "routes",
            format!("none of this machine's lead into {pods} (pods) or {services} (services)"),
        );
    };
    let overlaps =
        |range: &Ipv4Net| range.contains(&route.network()) || route.contains(&range.network());
    let (range, what, option) = match overlaps(&pods) {
        true => (pods, "pods", "--pod-cidr"),
        false => (services, "services", "--service-cidr"),
    };
    let more = match routes.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more routes)"),
    };
    Finding::failed(
        "routes",
        format!("the route to {route} by {link} overlaps {range}, the addresses of {what}{more}"),
        format!(
            "move that network, or make the cluster with another {option}; if it has another already, name it here with {option}"
        ),
    )
}

fn clock() -> Finding {
    match gantry_runtime::clock_is_kept() {
        Ok(true) => Finding::ok("clock", "kept by a time service"),
        Ok(false) => Finding::warning(
            "clock",
            "nothing keeps it right, as far as the kernel knows",
            "run a time service such as chrony or systemd-timesyncd, on this machine or the one it runs on",
        ),
        Err(error) => Finding::warning(
            "clock",
            format!("asking the kernel about it: {error}"),
            "look at it yourself: date",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome;
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_number() {
        for (release, outcome) in [
            ("5.10.0-28-amd64", Outcome::Ok),
            ("6.1.0", Outcome::Ok),
            ("10.0", Outcome::Ok),
            ("5.4.0-150-generic", Outcome::Failed),
            ("4.19", Outcome::Failed),
            ("", Outcome::Failed),
            ("what", Outcome::Failed),
        ] {
            assert_eq!(kernel(release).outcome, outcome, "{release}");
        }
    }

    #[test]
    fn a_controller_that_limits_need_is_needed() {
        assert_eq!(controllers("v2", &[]).outcome, Outcome::Ok);
        assert_eq!(controllers("v1", &["pids"]).outcome, Outcome::Warning);
        let bad = controllers("v2", &["pids", "memory"]);
        assert_eq!(bad.outcome, Outcome::Failed);
        assert!(bad.message.contains("pids, memory"), "{bad:?}");
    }

    #[test]
    fn an_overlapping_route_is_named_with_the_option_to_change() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a range");
        let pods = net("10.244.0.0/16");
        assert_eq!(overlap(&[], pods, SERVICES).outcome, Outcome::Ok);
        for (route, option, what) in [
            ("10.244.3.0/24", "--pod-cidr", "pods"),
            ("10.0.0.0/8", "--pod-cidr", "pods"),
            ("10.100.0.0/16", "--service-cidr", "services"),
        ] {
            let found = overlap(&[(net(route), "tun0".to_owned())], pods, SERVICES);
            assert_eq!(found.outcome, Outcome::Failed);
            assert!(
                [route, "tun0", what]
                    .iter()
                    .all(|words| found.message.contains(words)),
                "{found:?}"
            );
            assert!(found.fix.is_some_and(|fix| fix.contains(option)));
        }
    }

    #[test]
    fn routes_of_the_cluster_that_was_asked_are_its_own() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a range");
        let pods = [net("10.244.0.0/24"), net("10.244.1.0/24")];
        let left = |routes: &[(&str, &str)]| {
            let routes = routes
                .iter()
                .map(|(route, link)| (net(route), (*link).to_owned()));
            let mut routes: Vec<_> = routes.collect();
            leave_out_own(&mut routes, &pods);
            routes.len()
        };
        let services = ("10.96.0.0/12", "g0a1b2c-br");
        assert_eq!(left(&[("10.244.1.0/24", "g0a1b2c-br"), services]), 0);
        assert_eq!(left(&[("10.244.1.0/24", "cni0"), services]), 2);
        assert_eq!(left(&[("10.244.2.0/24", "g0a1b2c-br"), services]), 2);
    }

    #[test]
    fn a_scratch_directory_goes_with_its_value() -> std::io::Result<()> {
        let own = std::env::temp_dir().join(format!("doctor-test-{}", std::process::id()));
        fs::create_dir(&own)?;
        let scratch = Scratch::beside(&own.join("not/yet"))?;
        assert_eq!(scratch.0.parent(), Some(own.as_path()));
        drop(scratch);
        // Fails unless it is empty.
        fs::remove_dir(&own)
    }
}
