use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

use super::*;
use crate::net::PlainStream;
use crate::net::departure::{Departure, Leaving};
use crate::net::splice;

/// A stream that gives and takes one byte at a time, and neither before it was asked twice.
#[derive(Default)]
struct Grudging {
    gives: VecDeque<u8>,
    took: Vec<u8>,
    ended: bool,
    asked: [bool; 4],
}

impl Grudging {
    fn with(bytes: &[u8]) -> Self {
        Self {
            gives: bytes.iter().copied().collect(),
            ..Self::default()
        }
    }

    fn willing(&mut self, verb: usize, cx: &Context<'_>) -> Poll<()> {
        self.asked[verb] = !self.asked[verb];
        if self.asked[verb] {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Duplex for Grudging {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        ready!(self.willing(0, cx));
        let byte = self.gives.pop_front();
        buffer[..byte.iter().len()].copy_from_slice(byte.as_slice());
        Poll::Ready(Ok(byte.iter().len()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.willing(1, cx));
        assert!(!self.ended, "after the end");
        self.took.push(bytes[0][0]);
        Poll::Ready(Ok(1))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.willing(2, cx).map(Ok)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.willing(3, cx));
        self.ended = true;
        Poll::Ready(Ok(()))
    }

    fn departure(&self, _: Leaving) -> Option<Departure> {
        None
    }

    fn handed(&self) -> Option<u64> {
        None
    }

    fn unacknowledged(&self) -> Option<u64> {
        None
    }

    fn finished(&mut self) {}
}

#[tokio::test]
async fn nothing_is_lost_between_streams_that_give_and_take_a_byte_at_a_time() {
    let bytes = |length: u32, seed: u32| -> Vec<u8> {
        let byte = |at: u32| (at.wrapping_mul(seed) >> 7).to_le_bytes()[0];
        (0..length).map(byte).collect()
    };
    let (request, response) = (bytes(3000, 2_654_435_761), bytes(5000, 40_503));
    let (mut downstream, mut upstream) = (Grudging::with(&request), Grudging::with(&response));
    let counts = Counts::default();
    let last = relay(&mut downstream, &mut upstream, &counts).await.unwrap();
    assert_eq!(last, Side::Upstream, "it had more to say");
    assert!(upstream.took == request && downstream.took == response);
    assert!(upstream.ended && downstream.ended);
    assert_eq!((counts.received.get(), counts.sent.get()), (3000, 5000));
}

/// A connection, and its blocking peer.
async fn pair() -> (PlainStream, std::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let stream = stream.await.unwrap();
    (PlainStream::Tcp(stream), listener.accept().unwrap().0)
}

/// Bytes of the bulk: more than all socket buffers together take.
const BULK: usize = 24 * 1024 * 1024;

fn nth(at: usize) -> u8 {
    (at % 251).to_le_bytes()[0]
}

/// Sends the bulk and its end, while a thread reads: slowly at first, so that all buffers fill.
fn exchange(mut peer: std::net::TcpStream) -> thread::JoinHandle<usize> {
    let mut reading = peer.try_clone().unwrap();
    let reader = thread::spawn(move || {
        thread::sleep(std::time::Duration::from_millis(100));
        let (mut at, mut block) = (0, vec![0; 100_000]);
        loop {
            match reading.read(&mut block).unwrap() {
                0 => return at,
                n => {
                    assert!(
                        block[..n].iter().zip(at..).all(|(byte, at)| *byte == nth(at)),
                        "{at}"
                    );
                    at += n;
                }
            }
        }
    });
    thread::spawn(move || {
        let bytes: Vec<u8> = (0..BULK).map(nth).collect();
        peer.write_all(&bytes).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        reader.join().unwrap()
    })
}

#[tokio::test]
async fn bulk_between_plain_sockets_arrives_with_splice_and_without() {
    for (refused, allowed) in [(false, 64), (false, 0), (true, 64)] {
        splice::refuse(refused);
        splice::allow(allowed);
        splice::forget_idle();
        let ((mut downstream, client), (mut upstream, server)) = (pair().await, pair().await);
        let (client, server) = (exchange(client), exchange(server));
        let counts = Counts::default();
        relay(&mut downstream, &mut upstream, &counts).await.unwrap();
        assert_eq!((client.join().unwrap(), server.join().unwrap()), (BULK, BULK));
        assert_eq!(
            (counts.received.get(), counts.sent.get()),
            (BULK as u64, BULK as u64)
        );
        assert_eq!(
            splice::idle() > 0,
            !refused && allowed > 0,
            "a pipe was used, and given back"
        );
    }
    splice::refuse(false);
}

/// A tally that knows what waits.
#[derive(Default)]
struct Waiting(Cell<i64>);

impl Tally for Waiting {
    fn moved(&self, _: Side, _: u64) {}

    fn buffered(&self, _: Side, change: i64) {
        self.0.set(self.0.get() + change);
    }
}

#[tokio::test]
async fn a_cut_with_bytes_in_the_pipe_is_a_cut() {
    let ((mut downstream, mut client), (mut upstream, server)) = (pair().await, pair().await);
    let tally = Waiting::default();
    let writer = thread::spawn(move || {
        let block = vec![7; 1 << 20];
        // Until it is reset.
        while client.write_all(&block).is_ok() {}
    });
    let relayed = {
        let mut relayed = std::pin::pin!(relay(&mut downstream, &mut upstream, &tally));
        // Nobody reads: everything fills up, the pipe too.
        let filled = async {
            let mut last = i64::MIN;
            loop {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                if tally.0.get() > 0 && tally.0.get() == last {
                    return;
                }
                last = tally.0.get();
            }
        };
        tokio::select! {
            _ = &mut relayed => panic!("nothing has ended"),
            () = filled => {}
        }
        socket2::SockRef::from(&server)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
        drop(server);
        poll_fn(|cx| relayed.as_mut().poll(cx)).await
    };
    assert_eq!(relayed.unwrap_err().side, Side::Upstream);
    assert_eq!(tally.0.get(), 0, "what waited is told to wait no more");
    drop(downstream);
    writer.join().unwrap();
}
