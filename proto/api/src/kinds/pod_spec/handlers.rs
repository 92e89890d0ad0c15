//! Probes and lifecycle hooks: what is asked of a container, and when.

use k8s_openapi::api::core::v1::{
    ExecAction, GRPCAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction,
    TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::field::{ErrorList, Path};
use crate::names;

/// What a probe and a hook have in common.
#[derive(Default)]
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<&'a SleepAction>,
}

impl<'a> From<&'a Probe> for Handler<'a> {
    fn from(probe: &'a Probe) -> Self {
        Self {
            exec: probe.exec.as_ref(),
            http_get: probe.http_get.as_ref(),
            tcp_socket: probe.tcp_socket.as_ref(),
            grpc: probe.grpc.as_ref(),
            sleep: None,
        }
    }
}

impl<'a> From<&'a LifecycleHandler> for Handler<'a> {
    fn from(handler: &'a LifecycleHandler) -> Self {
        Self {
            exec: handler.exec.as_ref(),
            http_get: handler.http_get.as_ref(),
            tcp_socket: handler.tcp_socket.as_ref(),
            grpc: None,
            sleep: handler.sleep.as_ref(),
        }
    }
}

fn check_port(port: &IntOrString, path: &Path, errors: &mut ErrorList) {
    match port {
        IntOrString::Int(number) => {
            if let Some(detail) = names::is_port_number(i64::from(*number)) {
                errors.invalid(path, number, &detail);
            }
        }
        IntOrString::String(name) => {
            for detail in names::port_name(name) {
                errors.invalid(path, name, &detail);
            }
        }
    }
}

fn check_http(http: &HTTPGetAction, path: &Path, errors: &mut ErrorList) {
    const SCHEMES: [&str; 2] = ["HTTP", "HTTPS"];
    if http.path.as_deref().unwrap_or_default().is_empty() {
        errors.required(&path.child("path"), "");
    }
    check_port(&http.port, &path.child("port"), errors);
    let scheme = http.scheme.as_deref().unwrap_or_default();
    if !SCHEMES.contains(&scheme) {
        errors.not_supported(&path.child("scheme"), scheme, &SCHEMES);
    }
    for header in http.http_headers.iter().flatten() {
        if let Some(detail) = names::is_http_header_name(&header.name) {
            errors.invalid(&path.child("httpHeaders"), &header.name, &detail);
        }
    }
}

impl Handler<'_> {
    fn validate(&self, grace_period: i64, path: &Path, errors: &mut ErrorList) {
        let mut given = 0;
        let mut first = |present: bool, name: &str, errors: &mut ErrorList| {
            given += usize::from(present);
            if present && given > 1 {
                let detail = "may not specify more than 1 handler type";
                errors.forbidden(&path.child(name), detail);
            }
            present && given == 1
        };
        if first(self.exec.is_some(), "exec", errors)
            && self
                .exec
                .and_then(|exec| exec.command.as_ref())
                .is_none_or(Vec::is_empty)
        {
            errors.required(&path.child("exec").child("command"), "");
        }
        if first(self.http_get.is_some(), "httpGet", errors)
            && let Some(http) = self.http_get
        {
            check_http(http, &path.child("httpGet"), errors);
        }
        if first(self.tcp_socket.is_some(), "tcpSocket", errors)
            && let Some(tcp) = self.tcp_socket
        {
            check_port(&tcp.port, &path.child("tcpSocket").child("port"), errors);
        }
        if first(self.grpc.is_some(), "grpc", errors)
            && let Some(grpc) = self.grpc
        {
            let port = IntOrString::Int(grpc.port);
            check_port(&port, &path.child("grpc").child("port"), errors);
        }
        if first(self.sleep.is_some(), "sleep", errors)
            && let Some(sleep) = self.sleep
            && !(0..=grace_period).contains(&sleep.seconds)
        {
            let detail = format!(
                "must be non-negative and less than terminationGracePeriodSeconds ({grace_period})"
            );
            errors.invalid(&path.child("sleep"), sleep.seconds, &detail);
        }
        if given == 0 {
            errors.required(path, "must specify a handler type");
        }
    }
}

/// Which of a container's probes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeUse {
    Liveness,
    Readiness,
    Startup,
}

/// Checks one probe.
pub(super) fn validate_probe(
    probe: Option<&Probe>,
    usage: ProbeUse,
    grace_period: i64,
    path: &Path,
    errors: &mut ErrorList,
) {
    let Some(probe) = probe else {
        return;
    };
    Handler::from(probe).validate(grace_period, path, errors);
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if let Some(value) = value.filter(|value| *value < 0) {
            errors.invalid(&path.child(name), value, names::NOT_NEGATIVE);
        }
    }
    let grace_path = path.child("terminationGracePeriodSeconds");
    let grace = probe.termination_grace_period_seconds;
    if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
        errors.invalid(&grace_path, seconds, names::POSITIVE);
    }
    if usage == ProbeUse::Readiness {
        if let Some(seconds) = grace {
            errors.invalid(&grace_path, seconds, "must not be set for readinessProbes");
        }
    } else if let Some(threshold) = probe.success_threshold.filter(|times| *times != 1) {
        errors.invalid(&path.child("successThreshold"), threshold, "must be 1");
    }
}

/// Checks the hooks of a container.
pub(super) fn validate_lifecycle(
    lifecycle: Option<&Lifecycle>,
    grace_period: i64,
    path: &Path,
    errors: &mut ErrorList,
) {
    let hooks = |lifecycle: &Lifecycle| [lifecycle.post_start.clone(), lifecycle.pre_stop.clone()];
    let names = ["postStart", "preStop"];
    for (hook, name) in lifecycle.map(hooks).into_iter().flatten().zip(names) {
        if let Some(hook) = hook {
            Handler::from(&hook).validate(grace_period, &path.child(name), errors);
        }
    }
}
