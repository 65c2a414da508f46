//! A relay before an HTTP server that spoils answers: one request per connection, read whole, passed
//! on, and its answer given back as the test says.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The request is not passed on: this status and this code in the body come instead.
    Status(u16, &'static str),
    /// The request is passed on, but no answer ever comes.
    Silence,
    /// The answer comes after so long.
    Late(Duration),
    /// The answer ends so many bytes before its end.
    Cut(usize),
    /// The answer says that it is so many bytes longer, or shorter.
    Length(i64),
    /// One bit is wrong, so many bytes before the end.
    Flip(usize),
    /// The answer is what the server said to another request, by method and target, before.
    AnswerOf(String),
}

type Rule = Box<dyn FnMut(&str, &str) -> Option<Fault> + Send>;

#[derive(Default)]
struct State {
    rule: Option<Rule>,
    answers: HashMap<String, Vec<u8>>,
    requests: Vec<String>,
}

/// A relay, until it is dropped.
pub struct Relay {
    pub address: String,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Before the server at this `http://` address.
    pub async fn before(server: &str) -> Self {
        let server: SocketAddr = server.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, shared.clone()));
            }
        });
        Self { address, state, task }
    }

    /// From now on `rule` says, by method and target, what becomes of each answer.
    pub fn spoil(&self, rule: impl FnMut(&str, &str) -> Option<Fault> + Send + 'static) {
        self.state.lock().unwrap().rule = Some(Box::new(rule));
    }

    /// Nothing is spoiled any more.
    pub fn heal(&self) {
        self.state.lock().unwrap().rule = None;
    }

    /// Method and target of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

async fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    state: Arc<Mutex<State>>,
) -> io::Result<()> {
    let (head, body) = read_request(&mut client).await?;
    let mut words = head.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let name = format!("{method} {target}");
    let fault = {
        let mut state = state.lock().unwrap();
        state.requests.push(name.clone());
        state.rule.as_mut().and_then(|rule| rule(&method, &target))
    };
    if let Some(Fault::Status(status, code)) = fault {
        let body = format!("<Error><Code>{code}</Code></Error>");
        let len = body.len();
        let answer = format!(
            "HTTP/1.1 {status} Spoiled\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}"
        );
        return client.write_all(answer.as_bytes()).await;
    }
    let mut answer = pass_on(server, &head, &body).await?;
    if fault.is_none() {
        state.lock().unwrap().answers.insert(name, answer.clone());
    }
    match fault {
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Late(by)) => tokio::time::sleep(by).await,
        Some(Fault::Cut(bytes)) => answer.truncate(answer.len().saturating_sub(bytes)),
        Some(Fault::Length(by)) => answer = with_length(&answer, by),
        Some(Fault::Flip(before_end)) => {
            let at = answer.len() - before_end;
            answer[at] ^= 1;
        }
        Some(Fault::AnswerOf(other)) => {
            answer = state.lock().unwrap().answers.get(&other).cloned().unwrap();
        }
        Some(Fault::Status(..)) | None => {}
    }
    client.write_all(&answer).await?;
    client.shutdown().await
}

/// The head of a request as text, and its body.
async fn read_request(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8(bytes).unwrap();
    let length =
        |line: &str| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok();
    let length: usize = head.lines().find_map(length).unwrap_or(0);
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, body))
}

async fn pass_on(server: SocketAddr, head: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(server).await?;
    let head = head.trim_end();
    upstream.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    upstream.write_all(body).await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    Ok(answer)
}

fn with_length(answer: &[u8], by: i64) -> Vec<u8> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let lines =
        head.lines().map(|line| match line.to_lowercase().strip_prefix("content-length:") {
            Some(n) => format!("content-length: {}", n.trim().parse::<i64>().unwrap() + by),
            None => line.to_owned(),
        });
    let head = lines.collect::<Vec<_>>().join("\r\n");
    [head.as_bytes(), &answer[end..]].concat()
}
