//! Small apps behind sidecars: they answer lines, speak first, or leave each connection to the scenario.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

/// What an app does with a connection.
#[derive(Clone, Debug)]
enum Manner {
    /// Answers each line `x` with `<name>: x`, and the end with an end.
    Echo(String),
    /// Says `<name> greets you`, then as [`Manner::Echo`].
    Greet(String),
    /// Hands it to whoever calls [`App::accept`].
    ByHand(mpsc::UnboundedSender<TcpStream>),
}

/// A running app.
#[derive(Debug)]
pub struct App {
    /// Where it listens; port 0 for one on a unix socket.
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    by_hand: Mutex<mpsc::UnboundedReceiver<TcpStream>>,
    task: JoinHandle<()>,
}

impl App {
    /// One that answers each line `x` with `<name>: x`, and the end with an end.
    pub async fn echo(name: &str) -> Self {
        Self::start(Some(Manner::Echo(name.to_owned()))).await
    }

    /// One whose side speaks first: `<name> greets you`, then as [`Self::echo`].
    pub async fn greeting(name: &str) -> Self {
        Self::start(Some(Manner::Greet(name.to_owned()))).await
    }

    /// One whose connections the scenario takes from [`Self::accept`] and serves by itself.
    pub async fn by_hand() -> Self {
        Self::start(None).await
    }

    /// As [`Self::echo`], on a unix socket.
    pub fn echo_on(path: &Path, name: &str) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (manner, accepted) = (Manner::Echo(name.to_owned()), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(talk(stream, manner.clone()));
            }
        });
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            accepted,
            by_hand: Mutex::new(mpsc::unbounded_channel().1),
            task,
        }
    }

    /// As [`Self::echo`], at this address.
    pub async fn echo_at(address: SocketAddr, name: &str) -> Self {
        Self::start_at(address, Some(Manner::Echo(name.to_owned()))).await
    }

    async fn start(manner: Option<Manner>) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), manner).await
    }

    async fn start_at(address: SocketAddr, manner: Option<Manner>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hand, by_hand) = mpsc::unbounded_channel();
        let manner = manner.unwrap_or(Manner::ByHand(hand));
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                match &manner {
                    Manner::ByHand(hand) => {
                        let _ = hand.send(stream);
                    }
                    manner => {
                        tokio::spawn(talk(stream, manner.clone()));
                    }
                }
            }
        });
        Self {
            address,
            accepted,
            by_hand: Mutex::new(by_hand),
            task,
        }
    }

    /// Listens no more, as an app that was stopped; what it has accepted goes on.
    pub async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// The next connection of an app that is served [by hand](Self::by_hand).
    pub async fn accept(&self) -> TcpStream {
        let next = async { self.by_hand.lock().await.recv().await };
        let accepted = tokio::time::timeout(crate::PATIENCE, next).await;
        accepted
            .unwrap_or_else(|_| panic!("no connection reaches the app"))
            .unwrap()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite, manner: Manner) {
    let (read, mut write) = tokio::io::split(stream);
    let name = match manner {
        Manner::Echo(name) => name,
        Manner::Greet(name) => {
            if write
                .write_all(format!("{name} greets you\n").as_bytes())
                .await
                .is_err()
            {
                return;
            }
            name
        }
        Manner::ByHand(_) => return,
    };
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if write
            .write_all(format!("{name}: {line}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
    let _ = write.shutdown().await;
}

/// A client's connection that speaks lines.
#[derive(Debug)]
pub struct Line(BufReader<TcpStream>);

impl Line {
    /// Connects.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn connect(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self(BufReader::new(TcpStream::connect(address).await?)))
    }

    /// Sends a line and gives the answer; an end without one is `UnexpectedEof`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn ask(&mut self, line: &str) -> std::io::Result<String> {
        self.0.write_all(format!("{line}\n").as_bytes()).await?;
        self.hear().await
    }

    /// The next line from the other side.
    ///
    /// # Errors
    /// The kernel's; an end is `UnexpectedEof`.
    pub async fn hear(&mut self) -> std::io::Result<String> {
        let mut answer = String::new();
        match self.0.read_line(&mut answer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer.trim_end().to_owned()),
        }
    }

    /// The socket itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.0.get_mut()
    }

    /// The socket, which the caller reads from now on.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.0.buffer().is_empty(), "there are bytes that nobody has read");
        self.0.into_inner()
    }
}
