//! exec and attach: a session's stdio on the frames of a stream.

use gantry_cri::runtime::{IoSession, TerminalSize};
use gantry_rpc::node::stream_frame::Frame;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::status::{Failure, exit_status, failure, internal};
use super::{Wire, copy_out};

/// Carries a session's bytes until its command has ended and all of its output was sent, or the client is gone.
pub(super) async fn converse(mut session: IoSession, wire: Wire) -> Result<Value, Failure> {
    let Wire { up, mut down } = wire;
    let mut stdin = session.stdin.take();
    let resize = session.resize.clone();
    let inbound = async {
        while let Some(message) = down.recv().await {
            match message.frame {
                Some(Frame::Stdin(bytes)) => {
                    if let Some(writer) = &mut stdin
                        && (writer.write_all(&bytes).await.is_err()
                            || writer.flush().await.is_err())
                    {
                        stdin = None;
                    }
                }
                Some(Frame::CloseStdin(true)) => stdin = None,
                Some(Frame::Resize(size)) => {
                    let cells = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
                    let size = TerminalSize {
                        width: cells(size.width),
                        height: cells(size.height),
                    };
                    resize.send(size).await.ok();
                }
                _ => {}
            }
        }
    };
    let mut stderr = session.stderr.take();
    let errors = async {
        if let Some(stderr) = &mut stderr {
            copy_out(stderr, &up, Frame::Stderr).await;
        }
    };
    let outbound = async {
        tokio::join!(copy_out(&mut session.stdout, &up, Frame::Stdout), errors);
        (&mut session.exit).await
    };
    tokio::select! {
        exit = outbound => match exit {
            Ok(Ok(code)) => Ok(exit_status(code)),
            Ok(Err(error)) => Err(internal(&error)),
            Err(_) => Err(failure(500, "InternalError", "the container ended before its command did")),
        },
        // Dropping the session ends the command or detaches.
        () = inbound => Err(failure(500, "InternalError", "the client closed the stream")),
    }
}
