//! How a stream ends: the metav1.Status of its last frame.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// Why a stream could not be served, or how it ended; becomes a metav1.Status.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

pub(super) fn failure(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
    Failure {
        code,
        reason,
        message: message.into(),
    }
}

pub(super) fn internal(error: &dyn std::error::Error) -> Failure {
    failure(500, "InternalError", gantry_cri::words(error))
}

/// The exit code of a command as `kubectl exec` reads it.
pub(super) fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

pub(super) fn failure_status(failure: &Failure) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": failure.message, "reason": failure.reason, "code": failure.code,
    })
}

/// Why there is nothing yet of a container, as a kubelet says it: what the container waits for.
pub(super) fn not_begun(pod: Option<&Pod>, name: &str, container: &str) -> Failure {
    let status = pod.and_then(|pod| pod.status.as_ref());
    let inits = status.and_then(|status| status.init_container_statuses.as_ref());
    let mains = status.and_then(|status| status.container_statuses.as_ref());
    let mut all = inits.into_iter().chain(mains).flatten();
    let state = all
        .find(|status| status.name == container)
        .and_then(|status| status.state.as_ref());
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    let spec = pod.and_then(|pod| pod.spec.as_ref());
    let initialises = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .is_some_and(|inits| !inits.is_empty());
    let why = match reason.filter(|reason| !reason.is_empty()) {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        None if initialises => "PodInitializing",
        None => "ContainerCreating",
    };
    let message = format!("container \"{container}\" in pod \"{name}\" is waiting to start: {why}");
    failure(400, "BadRequest", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_waits_for() {
        let why = |spec: Value, status: Value| {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod = serde_json::from_value(json!({"spec": spec, "status": status})).unwrap();
            let Failure { message, .. } = not_begun(Some(&pod), "p", "c");
            message.rsplit(": ").next().unwrap().to_owned()
        };
        let waits = |reason: &str| {
            json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason}}}])
        };
        let inits = || json!({"initContainers": [{"name": "i"}]});
        for (spec, status, expected) in [
            (json!({}), json!({}), "ContainerCreating"),
            (inits(), json!({}), "PodInitializing"),
            (
                json!({}),
                json!({"containerStatuses": waits("CreateContainerConfigError")}),
                "CreateContainerConfigError",
            ),
            (
                json!({}),
                json!({"containerStatuses": waits("ErrImagePull")}),
                "image can't be pulled",
            ),
            (
                inits(),
                json!({"initContainerStatuses": waits("ImagePullBackOff")}),
                "trying and failing to pull image",
            ),
        ] {
            assert_eq!(why(spec, status), expected);
        }
        let unknown = not_begun(None, "p", "c");
        assert_eq!(
            unknown.message,
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"
        );
    }

    #[test]
    fn statuses_as_kubectl_reads_them() {
        assert_eq!(exit_status(0)["status"], "Success");
        let failed = exit_status(3);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(
            failed["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "3"})
        );
    }
}
