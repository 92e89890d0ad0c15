//! `grpc.health.v1.Health/Check`, as a kubelet's probes ask for it.

use std::time::Duration;

use gantry_cri::network::NodeConnection;
use http::uri::PathAndQuery;
use tonic::{Code, Status};

use super::hooks::{KEPT, Target, join_host_port};

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// The name of a status other than SERVING.
fn name(status: i32) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    }
}

/// What a call that failed says, in a kubelet's words. `limit` is the time that it had.
fn words(status: &Status, limit: Option<Duration>) -> String {
    let message = status.message();
    match (status.code(), limit) {
        (Code::Unimplemented, _) => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        ),
        (Code::DeadlineExceeded, Some(limit)) => {
            format!("timeout: health rpc did not complete within {limit:?}")
        }
        (code, _) => {
            let code = match code {
                Code::Cancelled => "Canceled".to_owned(),
                other => format!("{other:?}"),
            };
            format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}")
        }
    }
}

/// Asks whether a service is served; the empty one is the server as a whole.
pub(super) async fn check(
    target: &Target,
    host: &str,
    port: u16,
    service: &str,
    limit: Option<Duration>,
) -> Result<(), String> {
    let address = join_host_port(host, port);
    let no_way = |error: &dyn std::error::Error| {
        format!(
            "error: failed to connect service at {address:?}: {}",
            gantry_cri::words(error)
        )
    };
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent("kube-probe/1.36"))
        .map_err(|error| no_way(&error))?;
    let mut counted = target.count(host);
    let channel = endpoint.connect().await.map_err(|error| no_way(&error))?;
    counted.iter_mut().for_each(NodeConnection::connected);
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(KEPT);
    client.ready().await.map_err(|error| no_way(&error))?;
    let request = tonic::Request::new(HealthRequest {
        service: service.to_owned(),
    });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthRequest, HealthResponse>::default();
    let answer = client.unary(request, path, codec).await;
    let answer = answer.map_err(|status| words(&status, limit))?;
    match answer.into_inner().status {
        SERVING => Ok(()),
        other => Err(format!(
            "service unhealthy (responded with {:?})",
            name(other)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_as_a_kubelet_tells_them() {
        let limit = Some(Duration::from_secs(1));
        let told = |code: Code| words(&Status::new(code, "why"), limit);
        let none = "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): why";
        assert_eq!(told(Code::Unimplemented), none);
        assert_eq!(
            told(Code::DeadlineExceeded),
            "timeout: health rpc did not complete within 1s"
        );
        let failed = |code: &str| {
            format!("error: health rpc probe failed: rpc error: code = {code} desc = why")
        };
        assert_eq!(told(Code::NotFound), failed("NotFound"));
        assert_eq!(told(Code::Cancelled), failed("Canceled"));
        let names = [0, 2, 3, 7].map(name);
        assert_eq!(names, ["UNKNOWN", "NOT_SERVING", "SERVICE_UNKNOWN", "7"]);
    }
}
