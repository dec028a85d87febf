//! The relay of 64 KiB between two plain sockets: what it costs beside the kernel's copying.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use attache::net::PlainStream;
use attache::net::relay::{Counts, relay};
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};

use crate::bench::{Bench, Outcome, WARM_UP, counted};
use crate::records::{runtime, sockets};

const BYTES: usize = 64 * 1024;

pub(crate) const BENCHES: &[Bench] = &[
    Bench {
        name: "relay-64k",
        times: 200,
        run: |times| copy(times, BYTES),
    },
    Bench {
        name: "relay-100",
        times: 500,
        run: |times| copy(times, 100),
    },
];

fn copy(times: u32, bytes: usize) -> Outcome {
    runtime()?.block_on(async {
        let (mut caller, downstream) = sockets().await?;
        let (upstream, mut app) = sockets().await?;
        let (mut downstream, mut upstream) = (PlainStream::Tcp(downstream), PlainStream::Tcp(upstream));
        let counts = Counts::default();
        let mut relaying = pin!(relay(&mut downstream, &mut upstream, &counts));
        let (sent, mut buffer) = (vec![7; bytes], vec![0; BYTES]);
        for round in 0..WARM_UP + times {
            caller.write_all(&sent).await?;
            let mut received = 0;
            poll_fn(|cx| {
                let mut ended = false;
                let mut poll = || ended = relaying.as_mut().poll(cx).is_ready();
                if round < WARM_UP {
                    poll();
                } else {
                    counted(&mut poll);
                }
                while !ended && received < bytes {
                    let mut read = ReadBuf::new(&mut buffer);
                    std::task::ready!(Pin::new(&mut app).poll_read(cx, &mut read))?;
                    ended = read.filled().is_empty();
                    received += read.filled().len();
                }
                if ended {
                    return Poll::Ready(Err(std::io::Error::other("the relay ended")));
                }
                Poll::Ready(Ok(()))
            })
            .await?;
        }
        Ok(())
    })
}
