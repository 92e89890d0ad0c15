//! The image service for the CLI: pull, import, list and remove over a unix socket.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use gantry_cri::image::{Credentials, Image, ImageError, Images, Progress, ProgressSink};
use gantry_pods::pull_records::PullRecords;
use gantry_rpc::image::image_service_server::{ImageService, ImageServiceServer};
use gantry_rpc::image::progress::Event;
use gantry_rpc::image::{
    self as wire, ImportRequest, ListRequest, ListResponse, PullRequest, RemoveRequest,
    RemoveResponse,
};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Progress is dropped when the client is slower than this many events; the end never is.
const QUEUE: usize = 1024;

struct Service {
    images: Arc<dyn Images>,
    pulls: Arc<PullRecords>,
}

fn refused(error: &ImageError) -> Status {
    let words = gantry_cri::words(error);
    match error {
        ImageError::InvalidReference { .. } | ImageError::Archive { .. } => {
            Status::invalid_argument(words)
        }
        ImageError::NotFound(_) => Status::not_found(words),
        ImageError::InUse(_) => Status::failed_precondition(words),
        ImageError::Pull { .. } => Status::unavailable(words),
        ImageError::Corrupt { .. } => Status::data_loss(words),
        ImageError::Io { .. } => Status::internal(words),
    }
}

fn to_wire(image: Image) -> wire::Image {
    wire::Image {
        id: image.id,
        tags: image.tags,
        digests: image.digests,
        size: image.size,
    }
}

fn event(progress: Progress) -> wire::Progress {
    let event = match progress {
        Progress::Layer { digest, total } => Event::Layer(wire::Layer { digest, total }),
        Progress::Bytes { digest, done } => Event::Bytes(wire::Bytes { digest, done }),
        Progress::Unpacked { digest } => Event::Unpacked(wire::Unpacked { digest }),
    };
    wire::Progress { event: Some(event) }
}

type Events = mpsc::Sender<Result<wire::Progress, Status>>;

fn sink(events: &Events) -> ProgressSink {
    let events = events.clone();
    Arc::new(move |progress| {
        // Must not block; the last event tells the outcome in any case.
        events.try_send(Ok(event(progress))).ok();
    })
}

async fn finish(events: Events, result: Result<Vec<Image>, ImageError>) {
    let last = match result {
        Ok(images) => {
            let images = images.into_iter().map(to_wire).collect();
            Ok(wire::Progress {
                event: Some(Event::Done(wire::Done { images })),
            })
        }
        Err(error) => Err(refused(&error)),
    };
    // A client that has gone does not wait for it.
    events.send(last).await.ok();
}

type Answer = Pin<Box<dyn Stream<Item = Result<wire::Progress, Status>> + Send>>;

#[tonic::async_trait]
impl ImageService for Service {
    type PullStream = Answer;
    type ImportStream = Answer;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Answer>, Status> {
        let PullRequest {
            reference,
            username,
            password,
        } = request.into_inner();
        let credentials = (!username.is_empty()).then_some(Credentials { username, password });
        let (events, answer) = mpsc::channel(QUEUE);
        let images = self.images.clone();
        tokio::spawn(async move {
            let pulled = images
                .pull(&reference, credentials, Some(sink(&events)))
                .await;
            finish(events, pulled.map(|image| vec![image])).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answer))))
    }

    async fn import(&self, request: Request<ImportRequest>) -> Result<Response<Answer>, Status> {
        let path = std::path::PathBuf::from(request.into_inner().path);
        if !path.is_absolute() {
            return Err(Status::invalid_argument(format!(
                "{}: the path of an archive must be absolute",
                path.display()
            )));
        }
        let (events, answer) = mpsc::channel(QUEUE);
        let images = self.images.clone();
        // What was pulled and removed, and comes now, is for all pods.
        let forgotten = self.pulls.prune(&*images).await;
        forgotten.map_err(|error| refused(&error))?;
        tokio::spawn(async move {
            let imported = images.import(&path, Some(sink(&events))).await;
            finish(events, imported).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answer))))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let images = self.images.list().await.map_err(|error| refused(&error))?;
        Ok(Response::new(ListResponse {
            images: images.into_iter().map(to_wire).collect(),
        }))
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        self.images
            .remove(&request.into_inner().reference)
            .await
            .map_err(|error| refused(&error))?;
        let freed = self
            .images
            .collect_garbage()
            .await
            .map_err(|error| refused(&error))?;
        tracing::info!(freed, "an image was removed");
        Ok(Response::new(RemoveResponse {}))
    }
}

/// Binds the socket, for root alone; replaces the one of an earlier process.
pub(crate) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until stopped.
pub(crate) async fn serve(
    listener: UnixListener,
    images: Arc<dyn Images>,
    pulls: Arc<PullRecords>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    tonic::transport::Server::builder()
        .add_service(ImageServiceServer::new(Service { images, pulls }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests {
    use gantry_cri::image::{FakeImages, ImageConfig};
    use gantry_rpc::image::image_service_client::ImageServiceClient;
    use hyper_util::rt::TokioIo;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn images_are_pulled_listed_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("images.sock");
        let images = Arc::new(FakeImages::new(directory.path()));
        images.offer("web:1", ImageConfig::default());
        let stop = CancellationToken::new();
        let pulls = PullRecords::open(&directory.path().join("pulls"), Default::default());
        let pulls = Arc::new(pulls.unwrap());
        let server = tokio::spawn(serve(bind(&path).unwrap(), images, pulls, stop.clone()));
        let channel = tonic::transport::Endpoint::from_static("http://images")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        let mut client = ImageServiceClient::new(channel);
        let pull = |reference: &str| PullRequest {
            reference: reference.to_owned(),
            ..PullRequest::default()
        };
        let mut events = client.pull(pull("web:1")).await.unwrap().into_inner();
        let mut last = None;
        while let Some(event) = events.message().await.unwrap() {
            last = event.event;
        }
        assert!(
            matches!(last, Some(Event::Done(done)) if done.images[0].tags == ["docker.io/library/web:1"])
        );
        assert_eq!(
            client
                .list(ListRequest {})
                .await
                .unwrap()
                .into_inner()
                .images
                .len(),
            1
        );
        let mut refused = client.pull(pull("none:1")).await.unwrap().into_inner();
        let status = refused.message().await.unwrap_err();
        assert!(status.message().contains("manifest unknown"), "{status}");
        client
            .remove(RemoveRequest {
                reference: "web:1".to_owned(),
            })
            .await
            .unwrap();
        assert!(
            client
                .list(ListRequest {})
                .await
                .unwrap()
                .into_inner()
                .images
                .is_empty()
        );
        let relative = ImportRequest {
            path: "x.tar".to_owned(),
        };
        assert!(client.import(relative).await.is_err());
        drop(client);
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
