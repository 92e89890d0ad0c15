//! Every decoder that a stranger's bytes reach, as a function of those bytes that must neither panic nor take long.
//!
//! `make fuzz` gives them inputs made by libFuzzer (`fuzz/`), `tests/corpus.rs` those that were kept (`fuzz/corpus`). May
//! import anything; nothing imports it but the fuzzer.

mod documents;
mod streams;

/// A decoder by name.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As its directory in `fuzz/corpus` and its program in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Decodes; whether there is anything to be read does not matter.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "json_body",
        run: documents::json_body,
    },
    Target {
        name: "yaml_body",
        run: documents::yaml_body,
    },
    Target {
        name: "protobuf_body",
        run: documents::protobuf_body,
    },
    Target {
        name: "patch",
        run: documents::patch,
    },
    Target {
        name: "selector",
        run: documents::selector,
    },
    Target {
        name: "scalar",
        run: documents::scalar,
    },
    Target {
        name: "manifest",
        run: documents::manifest,
    },
    Target {
        name: "uri",
        run: streams::uri,
    },
    Target {
        name: "spdy",
        run: streams::spdy,
    },
    Target {
        name: "node_message",
        run: streams::node_message,
    },
    Target {
        name: "join_request",
        run: streams::join_request,
    },
    Target {
        name: "raft_packet",
        run: streams::raft_packet,
    },
    Target {
        name: "certificate_request",
        run: streams::certificate_request,
    },
    Target {
        name: "image_manifest",
        run: streams::image_manifest,
    },
    Target {
        name: "registry_challenge",
        run: streams::registry_challenge,
    },
    Target {
        name: "image_layer",
        run: streams::image_layer,
    },
    Target {
        name: "dns",
        run: streams::dns,
    },
    Target {
        name: "logged_packet",
        run: streams::logged_packet,
    },
    Target {
        name: "log_line",
        run: streams::log_line,
    },
    Target {
        name: "exposition",
        run: streams::exposition,
    },
    Target {
        name: "external_answer",
        run: streams::external_answer,
    },
    Target {
        name: "proxied_page",
        run: streams::proxied_page,
    },
];

/// Runs the target of that name.
pub fn run(name: &str, bytes: &[u8]) {
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        (target.run)(bytes);
    }
}
