//! Bulk bytes with a pattern of their own, and how a stream of them ended.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};

/// `length` bytes that look random and are the same for the same seed (xorshift).
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Reads to the end: what came, and how it ended.
///
/// # Panics
/// When there is no end within the patience of a test.
pub async fn to_end(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(crate::PATIENCE, stream.read_to_end(&mut bytes)).await;
    let ended = read.unwrap_or_else(|_| panic!("no end after {} bytes", bytes.len()));
    (bytes, ended.map(drop))
}

/// Connects, says `words` and reads to the end, as [`to_end`]. Who is refused may be reset before the connect
/// is told to have succeeded, or before the words are out: that is how it ended, too.
pub async fn dial_to_end(address: impl ToSocketAddrs, words: &[u8]) -> (Vec<u8>, io::Result<()>) {
    let dial = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(words).await?;
        Ok(to_end(&mut stream).await)
    };
    dial.await.unwrap_or_else(|refused| (Vec::new(), Err(refused)))
}

/// Closes with a reset instead of an end.
pub fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
}

/// When the app of an [`exchange`] ends its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppEnds {
    /// Once it has said all.
    AtOnce,
    /// Once it has heard all as well. Envoy, alone and over plain TCP too, drops what it still holds
    /// for an app that ended its side first.
    AfterReading,
}

/// `length` bytes each way at once, then a clean end each way; both must arrive intact.
///
/// # Panics
/// When they do not.
pub async fn exchange(client: TcpStream, app: TcpStream, length: usize, app_ends: AppEnds) {
    let (up, down) = (pattern(11, length), pattern(12, length));
    let (mut client_reads, mut client_writes) = client.into_split();
    let (mut app_reads, mut app_writes) = app.into_split();
    let upload = async {
        client_writes.write_all(&up).await.unwrap();
        client_writes.shutdown().await.unwrap();
    };
    let heard = tokio::sync::Notify::new();
    let download = async {
        app_writes.write_all(&down).await.unwrap();
        if app_ends == AppEnds::AfterReading {
            heard.notified().await;
        }
        app_writes.shutdown().await.unwrap();
    };
    let reading = async {
        let received = to_end(&mut app_reads).await;
        heard.notify_one();
        received
    };
    let (received, answered, (), ()) = tokio::join!(reading, to_end(&mut client_reads), upload, download);
    received.1.unwrap();
    answered.1.unwrap();
    assert!(received.0 == up, "the upload is not intact");
    assert!(answered.0 == down, "the download is not intact");
}
