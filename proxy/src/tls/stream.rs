//! The encrypted stream: rustls' unbuffered connection over one TCP socket.
//!
//! Owns the socket and the TLS state. Records are received into the worker's lent buffer and opened
//! there; only an incomplete trailing record is copied aside, so an idle connection holds no buffer.
//! Nothing else on the data path speaks TLS.
//!
//! close_notify and FIN together are the clean end; FIN alone is a truncation and an error, so that a
//! cut transfer cannot look complete (RFC 8446, section 6.1).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{CertificateError, HandshakeKind};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::client_hello::{ClientHello, Inspected, inspect};
use super::config::ServerTls;
use super::error::{HandshakeError, is_not_tls};
use super::sessions::{Sessions, is_in_time};
use super::{names, verifier};
use crate::model::Peer;
use crate::net::Duplex;
use crate::net::buffer::{BLOCK_BYTES, Backlog, with_received, with_sending};
use crate::net::departure::{Departure, Leaving};
use crate::net::socket::{close_cleanly, unacknowledged};
use crate::telemetry::access_log::TlsSession;

/// Record headers, tags and explicit nonces of one sealed slice are well below this; see
/// [`crate::net::buffer::CIPHER_BLOCK_BYTES`].
const SEAL_OVERHEAD: usize = 512;

/// What a stranger's unfinished handshake message may hold of our memory: Consul's chains have 2 to
/// 6 KiB, and a whole record must fit. A peer that we dialled ourselves may use the whole block.
const STRANGERS_BYTES: usize = 24 * 1024;

/// Bytes of a close_notify alert record, generously.
const CLOSE_NOTIFY_BYTES: usize = 128;

/// One connection's TLS state and socket.
pub struct TlsStream {
    socket: TcpStream,
    session: Session,
    /// The received part of a record that is not complete. Empty while idle.
    partial: Vec<u8>,
    /// Plaintext that arrived together with the end of the handshake. Empty afterwards.
    opened: Backlog,
    /// Sealed records that the socket did not take yet. Empty while idle.
    outgoing: Backlog,
    /// Bytes of records that the socket took.
    handed: u64,
    /// close_notify was received: nothing more will be.
    peer_closed: bool,
    /// close_notify was queued: nothing more may be sealed.
    finished: bool,
}

/// What a peer that was accepted said of itself.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// What it asked for.
    pub hello: ClientHello,
    /// None where no certificate was asked for, or none presented to who only asked.
    pub peer: Option<Peer>,
}

enum Session {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What one step of rustls asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// To be called again with what is left.
    Again,
    /// Nothing more without bytes from the peer.
    Idle,
    /// close_notify was received.
    PeerClosed,
}

enum Sealed {
    /// To be called again: something queued had to go first.
    Again,
    /// So many bytes of the block are sealed records.
    Bytes(usize),
}

impl TlsStream {
    /// Accepts: the server's side of a handshake. The caller bounds its time.
    ///
    /// # Errors
    /// [`HandshakeError`]; an alert was sent where TLS asks for one.
    pub async fn accept(mut socket: TcpStream, tls: &ServerTls) -> Result<(Self, Greeting), HandshakeError> {
        let mut early = Vec::new();
        let hello = match greeted(&mut socket, &mut early).await {
            Ok(hello) => hello,
            Err(_) if early.is_empty() => return Err(HandshakeError::Silent),
            Err(error) => return Err(error.into()),
        };
        let config = tls.answer_to(hello.as_ref());
        let connection = UnbufferedServerConnection::new(Arc::clone(config))?;
        let mut stream = Self::new(socket, Session::Server(Box::new(connection)));
        stream.partial = early;
        stream.handshake().await?;
        if stream.is_resumed() && !is_in_time(stream.peer_certificates()) {
            return Err(rustls::Error::InvalidCertificate(CertificateError::Expired).into());
        }
        let peer = stream.peer()?;
        let hello = hello.unwrap_or_default();
        Ok((stream, Greeting { hello, peer }))
    }

    /// Connects: the client's side of a handshake, which resumes a session where there is one. The caller bounds
    /// its time.
    ///
    /// # Errors
    /// [`HandshakeError`]; an alert was sent where TLS asks for one.
    pub async fn connect(
        socket: TcpStream,
        sessions: &Sessions,
        sni: ServerName<'static>,
    ) -> Result<Self, HandshakeError> {
        let config = sessions.config();
        let connection = UnbufferedClientConnection::new(Arc::clone(config), sni)?;
        let mut stream = Self::new(socket, Session::Client(Box::new(connection)));
        let shaken = stream.handshake().await;
        if shaken.is_err() {
            sessions.end_if_resuming(config);
        }
        shaken?;
        if stream.is_resumed() {
            sessions.resumed(stream.group());
        } else {
            sessions.begin(config, stream.peer_certificates());
        }
        Ok(stream)
    }

    async fn handshake(&mut self) -> Result<(), HandshakeError> {
        let shaken = poll_fn(|cx| self.poll_handshake(cx)).await;
        if shaken.is_err() {
            // A reset would overtake the alert that tells the peer why.
            close_cleanly(&self.socket);
        }
        shaken
    }

    fn new(socket: TcpStream, session: Session) -> Self {
        Self {
            socket,
            session,
            partial: Vec::new(),
            opened: Backlog::default(),
            outgoing: Backlog::default(),
            handed: 0,
            peer_closed: false,
            finished: false,
        }
    }

    /// None where no certificate was asked for, or none presented to who only asked.
    fn peer(&self) -> Result<Option<Peer>, HandshakeError> {
        let leaf = self.peer_certificates().first();
        Ok(leaf.map(verifier::peer).transpose()?)
    }

    /// What the peer presented, its own certificate first; empty where it presented none.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        let certificates = match &self.session {
            Session::Client(connection) => connection.peer_certificates(),
            Session::Server(connection) => connection.peer_certificates(),
        };
        certificates.unwrap_or_default()
    }

    /// Our end's address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// What was agreed on in the handshake; none before.
    pub fn agreed(&self) -> Option<TlsSession<'static>> {
        match &self.session {
            Session::Client(connection) => names::agreed(connection),
            Session::Server(connection) => names::agreed(connection),
        }
    }

    /// Whether an earlier session was resumed, without certificates.
    pub fn is_resumed(&self) -> bool {
        let kind = match &self.session {
            Session::Client(connection) => connection.handshake_kind(),
            Session::Server(connection) => connection.handshake_kind(),
        };
        kind == Some(HandshakeKind::Resumed)
    }

    /// The group of the key exchange, in BoringSSL's words; none before it, or where it has no name.
    pub fn group(&self) -> Option<&'static str> {
        match &self.session {
            Session::Client(connection) => names::group(connection),
            Session::Server(connection) => names::group(connection),
        }
    }

    /// The names in the peer's certificate, verified; none where it presented none.
    pub fn peer_names(&self) -> Option<Peer> {
        self.peer().ok().flatten()
    }

    fn is_handshaking(&self) -> bool {
        match &self.session {
            Session::Client(connection) => connection.is_handshaking(),
            Session::Server(connection) => connection.is_handshaking(),
        }
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HandshakeError>> {
        let mut opened = std::mem::take(&mut self.opened);
        let polled = with_received(|block| {
            loop {
                let kept = self.restore_partial(block);
                if let Err(error) = self.process(&mut block[..kept], &mut |plaintext| opened.push(plaintext))
                {
                    if !is_not_tls(&error) {
                        // The alert is for the peer's log; whether it is read changes nothing here.
                        let _ = self.poll_flush(cx);
                    }
                    return Poll::Ready(Err(error.into()));
                }
                ready!(self.poll_flush(cx))?;
                if !self.is_handshaking() {
                    return Poll::Ready(Ok(()));
                }
                let limit = match self.session {
                    Session::Server(_) => STRANGERS_BYTES,
                    Session::Client(_) => block.len(),
                };
                ready!(self.poll_fill(cx, block, limit))?;
            }
        });
        self.opened = opened;
        polled
    }

    /// Reads once behind `partial` in `block` (up to `limit`), and leaves everything in `partial`.
    fn poll_fill(&mut self, cx: &mut Context<'_>, block: &mut [u8], limit: usize) -> Poll<io::Result<()>> {
        let kept = self.partial.len();
        if kept >= limit {
            return Poll::Ready(Err(too_large(limit)));
        }
        let mut received = ReadBuf::new(&mut block[kept..limit]);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut received))?;
        if received.filled().is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.partial.extend_from_slice(received.filled());
        Poll::Ready(Ok(()))
    }

    /// Moves `partial` to the front of `block` and returns its length.
    fn restore_partial(&mut self, block: &mut [u8]) -> usize {
        let partial = std::mem::take(&mut self.partial);
        block[..partial.len()].copy_from_slice(&partial);
        partial.len()
    }

    /// Runs rustls over `incoming` until it wants more bytes: plaintext goes to `sink`, sealed answers
    /// to `outgoing`, an incomplete trailing record to `partial`.
    fn process(&mut self, incoming: &mut [u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), rustls::Error> {
        let mut consumed = 0;
        loop {
            let rest = &mut incoming[consumed..];
            let (discard, step) = match &mut self.session {
                Session::Client(c) => step(c.process_tls_records(rest), &mut self.outgoing, sink),
                Session::Server(c) => step(c.process_tls_records(rest), &mut self.outgoing, sink),
            };
            consumed += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Idle) => {
                    self.partial.extend_from_slice(&incoming[consumed..]);
                    return Ok(());
                }
                Ok(Step::PeerClosed) => {
                    self.peer_closed = true;
                    return Ok(());
                }
                Err(error) => {
                    self.queue_alert();
                    return Err(error);
                }
            }
        }
    }

    /// After an error rustls may hold an alert for the peer, which the next step hands out. A step
    /// without one would look at the input again, which rustls does not bear after an error.
    fn queue_alert(&mut self) {
        loop {
            let Self {
                session, outgoing, ..
            } = self;
            let handed_out = match session {
                Session::Client(c) if c.wants_write() => {
                    step(c.process_tls_records(&mut []), outgoing, &mut |_| {}).1
                }
                Session::Server(c) if c.wants_write() => {
                    step(c.process_tls_records(&mut []), outgoing, &mut |_| {}).1
                }
                Session::Client(_) | Session::Server(_) => return,
            };
            if handed_out.is_err() {
                return;
            }
        }
    }

    /// Seals `plaintext` into `block`, or close_notify when there is none. rustls is shown `partial`
    /// for the sake of its offsets; there is nothing whole in it.
    fn seal(&mut self, plaintext: Option<&[u8]>, block: &mut [u8]) -> io::Result<usize> {
        loop {
            let Self {
                session,
                partial,
                outgoing,
                ..
            } = self;
            let (discard, sealed) = match session {
                Session::Client(c) => seal(c.process_tls_records(partial), plaintext, block, outgoing),
                Session::Server(c) => seal(c.process_tls_records(partial), plaintext, block, outgoing),
            };
            partial.drain(..discard);
            match sealed? {
                Sealed::Bytes(n) => return Ok(n),
                Sealed::Again => {}
            }
        }
    }

    /// Writes `records`, after what waits already; what the socket does not take waits.
    fn write_records(&mut self, cx: &mut Context<'_>, records: &[u8]) -> io::Result<()> {
        let mut waiting = records;
        while self.outgoing.is_empty() && !waiting.is_empty() {
            match Pin::new(&mut self.socket).poll_write(cx, waiting)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    self.handed += n as u64;
                    waiting = &waiting[n..];
                }
                Poll::Pending => break,
            }
        }
        self.outgoing.push(waiting);
        Ok(())
    }
}

impl Duplex for TlsStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.opened.is_empty() {
            let waiting = self.opened.waiting();
            let n = waiting.len().min(buffer.len());
            buffer[..n].copy_from_slice(&waiting[..n]);
            self.opened.advance(n);
            return Poll::Ready(Ok(n));
        }
        if !self.outgoing.is_empty() {
            // An answer of TLS itself (a key update) waits; nobody else may come to flush it.
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
        }
        with_received(|block| {
            while !self.peer_closed {
                // Plaintext is shorter than its records: with no more ciphertext than `buffer` has
                // room, everything that is opened fits.
                let limit = block.len().min(buffer.len());
                let kept = self.partial.len();
                if kept >= limit {
                    return Poll::Ready(Err(too_large(limit)));
                }
                let mut received = ReadBuf::new(&mut block[kept..limit]);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut received))?;
                let end = kept + received.filled().len();
                if end == kept {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                self.restore_partial(block);
                let mut opened = 0;
                let processed = self.process(&mut block[..end], &mut |plaintext| {
                    buffer[opened..opened + plaintext.len()].copy_from_slice(plaintext);
                    opened += plaintext.len();
                });
                if !self.outgoing.is_empty() {
                    // The alert or key update leaves now if it can; a failure shows at the next write.
                    let _ = self.poll_flush(cx);
                }
                processed.map_err(invalid)?;
                if opened > 0 {
                    return Poll::Ready(Ok(opened));
                }
            }
            Poll::Ready(Ok(0))
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        with_sending(|block| {
            let (mut sealed, mut taken) = (0, 0);
            for slice in bytes {
                let room = (BLOCK_BYTES - taken).min(block.len().saturating_sub(sealed + SEAL_OVERHEAD));
                let part = &slice[..slice.len().min(room)];
                if part.is_empty() {
                    break;
                }
                sealed += self.seal(Some(part), &mut block[sealed..])?;
                taken += part.len();
            }
            self.write_records(cx, &block[..sealed])?;
            Poll::Ready(Ok(taken))
        })
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let n = ready!(Pin::new(&mut self.socket).poll_write(cx, self.outgoing.waiting()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.handed += n as u64;
            self.outgoing.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            let mut record = [0; CLOSE_NOTIFY_BYTES];
            let n = self.seal(None, &mut record)?;
            self.finished = true;
            self.write_records(cx, &record[..n])?;
        }
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn departure(&self, leaving: Leaving) -> Option<Departure> {
        Departure::of(&self.socket, leaving)
    }

    fn alpn(&self) -> Option<&[u8]> {
        match &self.session {
            Session::Client(connection) => connection.alpn_protocol(),
            Session::Server(connection) => connection.alpn_protocol(),
        }
    }

    fn handed(&self) -> Option<u64> {
        Some(self.handed)
    }

    fn unacknowledged(&self) -> Option<u64> {
        unacknowledged(&self.socket)
    }

    fn finished(&mut self) {
        close_cleanly(&self.socket);
    }
}

/// Receives into `early` until the ClientHello is there. None where it is not one that can be read: the
/// handshake then says why, or asks for the rest.
async fn greeted(socket: &mut TcpStream, early: &mut Vec<u8>) -> io::Result<Option<ClientHello>> {
    loop {
        match inspect(early) {
            Inspected::Hello(hello) => return Ok(Some(hello)),
            Inspected::Need(_) if early.len() < STRANGERS_BYTES => {}
            Inspected::Need(_) | Inspected::NotTls | Inspected::TooLarge => return Ok(None),
        }
        poll_fn(|cx| {
            with_received(|block| {
                let mut received = ReadBuf::new(&mut block[..STRANGERS_BYTES - early.len()]);
                ready!(Pin::new(&mut *socket).poll_read(cx, &mut received))?;
                if received.filled().is_empty() {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                early.extend_from_slice(received.filled());
                Poll::Ready(Ok(()))
            })
        })
        .await?;
    }
}

/// One step of rustls. Returns how many bytes of the input are done with, and what comes next.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Backlog,
    sink: &mut dyn FnMut(&[u8]),
) -> (usize, Result<Step, rustls::Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    sink(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => queue(&mut data, outgoing).map(|()| Step::Again),
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            // Queued in order; the socket may take it later.
            transmit.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Step::Idle),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Step::PeerClosed),
        Ok(other) => Err(rustls::Error::General(format!("unexpected TLS state {other:?}"))),
        Err(error) => Err(error),
    };
    (discard, step)
}

fn queue<Data>(data: &mut EncodeTlsData<'_, Data>, outgoing: &mut Backlog) -> Result<(), rustls::Error> {
    let general = |error: EncodeError| rustls::Error::General(error.to_string());
    let size = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(error) => return Err(general(error)),
    };
    let mut record = vec![0; size];
    let n = data.encode(&mut record).map_err(general)?;
    outgoing.push(&record[..n]);
    Ok(())
}

fn seal<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plaintext: Option<&[u8]>,
    block: &mut [u8],
    outgoing: &mut Backlog,
) -> (usize, io::Result<Sealed>) {
    let sealed = match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match plaintext {
            Some(plaintext) => traffic.encrypt(plaintext, block),
            None => traffic.queue_close_notify(block),
        }
        .map(Sealed::Bytes)
        .map_err(io::Error::other),
        Ok(ConnectionState::EncodeTlsData(mut data)) => queue(&mut data, outgoing)
            .map(|()| Sealed::Again)
            .map_err(invalid),
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Sealed::Again)
        }
        Ok(ConnectionState::PeerClosed) => Ok(Sealed::Again),
        Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
        Err(error) => Err(invalid(error)),
    };
    (status.discard, sealed)
}

fn too_large(limit: usize) -> io::Error {
    let error = format!("a TLS message of over {} KiB", limit / 1024);
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
impl TlsStream {
    /// The socket under the session.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Bytes to the socket past the session, as a broken peer would send them.
    pub(super) async fn write_raw(&mut self, bytes: &[u8]) {
        use tokio::io::AsyncWriteExt;
        self.socket.write_all(bytes).await.unwrap();
    }
}
