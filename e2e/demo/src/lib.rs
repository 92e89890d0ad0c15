//! Packs the demo's web server into OCI-layout tarballs, so that everything runs with no registry at hand.
//!
//! Depends on nothing of Gantry. The tarballs are the same for the same program: no times, no users.

use std::io::{self, Write};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The static program of the image, server and load in one, compiled by build.rs. It runs on this machine too.
pub const WEB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/web"));

/// The name images are tagged with, before the `:version`.
pub const REPOSITORY: &str = "gantry.local/web";
/// The image of [`pack_tools`].
pub const TOOLS: &str = "gantry.local/tools:v1";

/// What tests run in containers, beside the demo's program.
const APPLETS: &[&str] = &[
    "cat", "cp", "echo", "hostname", "kill", "ls", "mkdir", "nslookup", "rm", "sh", "sleep", "tar",
];

/// Writes the image `gantry.local/web:VERSION` as an OCI-layout tarball: nothing but the demo's program.
pub fn pack(version: &str, into: impl Write) -> io::Result<()> {
    pack_with(version, &[], into)
}

/// Writes an image as [`pack`] does whose program ends with an error as soon as it is started.
pub fn pack_broken(version: &str, into: impl Write) -> io::Result<()> {
    pack_with(version, &["crash"], into)
}

fn pack_with(version: &str, arguments: &[&str], into: impl Write) -> io::Result<()> {
    let config = json!({
        "Entrypoint": ["/web"],
        "Cmd": arguments,
        "Env": ["PATH=/", format!("VERSION={version}")],
        "ExposedPorts": {"8080/tcp": {}},
        "User": "65532:65532",
        "WorkingDir": "/",
    });
    write(
        &format!("{REPOSITORY}:{version}"),
        &config,
        &layer(None)?,
        into,
    )
}

/// Writes the image [`TOOLS`] as an OCI-layout tarball: the demo's program and a static busybox, as root. It waits
/// until it is killed.
pub fn pack_tools(busybox: &[u8], into: impl Write) -> io::Result<()> {
    let config = json!({
        "Cmd": ["sleep", "2147483647"],
        "Env": ["PATH=/bin:/", "VERSION=tools"],
        "WorkingDir": "/",
    });
    write(TOOLS, &config, &layer(Some(busybox))?, into)
}

/// Writes an image that runs one program, as a user who is not root. `files` are paths in it, relative to its root, and what
/// they hold: the program and the libraries that it needs.
pub fn pack_program(
    name: &str,
    program: &str,
    files: &[(String, Vec<u8>)],
    into: impl Write,
) -> io::Result<()> {
    let config = json!({
        "Entrypoint": [format!("/{program}")],
        "User": "65532:65532",
        "WorkingDir": "/",
    });
    let mut archive = Builder::new(Vec::new());
    for (path, content) in files {
        file(&mut archive, path, content, 0o755)?;
    }
    write(name, &config, &archive.into_inner()?, into)
}

fn write(name: &str, config: &Value, layer: &[u8], into: impl Write) -> io::Result<()> {
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }))?;
    let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    named["annotations"] = json!({
        "org.opencontainers.image.ref.name": name,
        "io.containerd.image.name": name,
    });
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [named]}))?;
    let mut archive = Builder::new(into);
    file(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    file(&mut archive, "index.json", &index, 0o644)?;
    for blob in [config.as_slice(), &manifest, layer] {
        file(
            &mut archive,
            &format!("blobs/{}", digest(blob).replacen(':', "/", 1)),
            blob,
            0o644,
        )?;
    }
    archive.finish()
}

/// The root file system: the programs, and directories that tools expect.
fn layer(busybox: Option<&[u8]>) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    directory(&mut archive, "tmp/", 0o1777)?;
    directory(&mut archive, "etc/", 0o755)?;
    file(
        &mut archive,
        "etc/passwd",
        b"root:x:0:0:root:/:/\nweb:x:65532:65532:web:/:/\n",
        0o644,
    )?;
    file(
        &mut archive,
        "etc/group",
        b"root:x:0:\nweb:x:65532:\n",
        0o644,
    )?;
    file(&mut archive, "web", WEB, 0o755)?;
    if let Some(busybox) = busybox {
        directory(&mut archive, "bin/", 0o755)?;
        file(&mut archive, "bin/busybox", busybox, 0o755)?;
        for applet in APPLETS {
            let mut header = header(0, 0o777);
            header.set_entry_type(EntryType::Symlink);
            archive.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
        }
    }
    archive.into_inner()
}

fn directory(archive: &mut Builder<impl Write>, path: &str, mode: u32) -> io::Result<()> {
    let mut header = header(0, mode);
    header.set_entry_type(EntryType::Directory);
    archive.append_data(&mut header, path, io::empty())
}

fn header(size: usize, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn file(
    archive: &mut Builder<impl Write>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> io::Result<()> {
    archive.append_data(&mut header(content.len(), mode), path, content)
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_version_is_the_same_program_started_in_vain() {
        let config = |pack: &dyn Fn(&mut Vec<u8>) -> io::Result<()>| -> (Value, Vec<u8>) {
            let mut bytes = Vec::new();
            pack(&mut bytes).expect("packs");
            let mut archive = tar::Archive::new(bytes.as_slice());
            let blobs = archive.entries().expect("a tar").skip(2).map(|entry| {
                let mut blob = Vec::new();
                io::Read::read_to_end(&mut entry.expect("entry"), &mut blob).expect("bytes");
                blob
            });
            let mut blobs = blobs.collect::<Vec<_>>().into_iter();
            let config = blobs.next().expect("a config");
            let config: Value = serde_json::from_slice(&config).expect("JSON");
            (config["config"].clone(), blobs.nth(1).expect("a layer"))
        };
        let (works, layer) = config(&|bytes| pack("v3", bytes));
        let (broken, same) = config(&|bytes| pack_broken("v3", bytes));
        assert_eq!(works["Cmd"], json!([]));
        assert_eq!(broken["Cmd"], json!(["crash"]));
        assert_eq!(broken["Entrypoint"], works["Entrypoint"]);
        assert!(same == layer, "the layers differ");
    }

    #[test]
    fn tools_are_links_to_one_program() {
        let layer = layer(Some(b"program")).expect("packs");
        let mut archive = tar::Archive::new(layer.as_slice());
        let links = archive
            .entries()
            .expect("a tar")
            .map(|entry| entry.expect("entry"))
            .filter_map(|entry| entry.link_name().expect("a name").map(|to| to.into_owned()));
        let links: Vec<_> = links.collect();
        assert_eq!(links.len(), APPLETS.len());
        assert!(links.iter().all(|to| to.as_os_str() == "busybox"));
    }

    #[test]
    fn versions_share_their_layer_and_differ_in_their_config() {
        let entries = |version: &str| -> Vec<String> {
            let mut bytes = Vec::new();
            pack(version, &mut bytes).expect("packs");
            tar::Archive::new(bytes.as_slice())
                .entries()
                .expect("a tar")
                .map(|entry| {
                    entry
                        .expect("entry")
                        .path()
                        .expect("path")
                        .display()
                        .to_string()
                })
                .collect()
        };
        let (one, two) = (entries("v1"), entries("v2"));
        assert_eq!(one.len(), 5);
        assert_eq!(one[4], two[4], "the layer");
        assert_ne!(one[2], two[2], "the config");
        assert_eq!(entries("v1"), one, "packing is reproducible");
    }
}
