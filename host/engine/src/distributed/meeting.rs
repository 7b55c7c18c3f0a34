//! Where ranks meet before they train: rank 0 listens, the others come, and nobody goes further until all are there.
//!
//! libtorch's own store waits for connections without saying whose, and without an end. So the ranks speak to each other first, a few
//! lines of text over connections that stay open until all have joined: what comes instead of a rank is sent away, every step has one
//! limit of time and ends at a signal, and rank 0 knows which ranks it misses and tells the others.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use maskdiff_base::memory;
use maskdiff_base::net::shown;
use maskdiff_base::ranks::Place;
use maskdiff_base::stop::Stop;

/// What a rank says first, with its number and how many ranks it belongs to.
const HELLO: &str = "maskdiff-rank";
/// Between two looks at the connections.
const LOOK: Duration = Duration::from_millis(10);
/// Between two tries to reach rank 0, and how long one may take.
const AGAIN: Duration = Duration::from_millis(100);
const CONNECT: Duration = Duration::from_secs(2);
/// A connection that has said nothing for so long is none of a rank, or none to rank 0.
const SILENCE: Duration = Duration::from_secs(5);
/// Connections that may wait to say who they are.
const UNKNOWN: usize = 64;
/// The longest line.
const LONGEST: usize = 64 << 10;

/// Why ranks did not meet.
#[derive(Debug)]
pub(super) enum Failed {
    /// Somebody asked to stop, while this was waited for.
    Stopped(String),
    /// A reason.
    Said(String),
}

/// A connection between two ranks, by lines.
struct Line {
    stream: TcpStream,
    heard: Vec<u8>,
    closed: bool,
    since: Instant,
}

impl Line {
    fn new(stream: TcpStream) -> Self {
        let closed = stream.set_nonblocking(true).is_err();
        let _ = stream.set_nodelay(true);
        Self { stream, heard: Vec::new(), closed, since: Instant::now() }
    }

    /// Short lines find room in the system's buffer; a peer that lets it fill up is not there.
    fn say(&mut self, text: &str) {
        self.closed |= self.stream.write_all(format!("{text}\n").as_bytes()).is_err();
    }

    /// The next line, when a whole one has come.
    fn next(&mut self) -> Option<String> {
        let mut buffer = [0; 4096];
        while !self.closed && !self.heard.contains(&b'\n') {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(n) => self.heard.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
            self.closed |= self.heard.len() > LONGEST;
        }
        let end = self.heard.iter().position(|byte| *byte == b'\n')?;
        let rest = self.heard.split_off(end + 1);
        let line = std::mem::replace(&mut self.heard, rest);
        Some(String::from_utf8_lossy(&line).trim_end().to_string())
    }
}

/// The meeting of this process with the other ranks.
pub(super) struct Meeting<'a> {
    place: &'a Place,
    stop: &'a Stop,
    time: Duration,
    begun: Instant,
    /// Rank 0's to each other rank, by its number; of another rank the one to rank 0.
    lines: Vec<(usize, Line)>,
    /// Of rank 0: the ranks that came and closed their connection.
    gone: Vec<usize>,
    /// The ranks that rank 0 says it misses.
    missing: Vec<usize>,
    /// The ranks that have said that they joined.
    ready: Vec<usize>,
    /// A word about who else came.
    stray: Option<String>,
}

/// Names of ranks: `rank 1`, or `ranks 1, 3`.
pub(super) fn named(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{noun} {}", numbers.join(", "))
}

impl<'a> Meeting<'a> {
    pub(super) fn new(place: &'a Place, stop: &'a Stop, time: Duration) -> Self {
        let (lines, gone, missing, ready) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { place, stop, time, begun: Instant::now(), lines, gone, missing, ready, stray: None }
    }

    /// The time that is left.
    pub(super) fn left(&self) -> Duration {
        self.time.saturating_sub(self.begun.elapsed())
    }

    /// An error when there is no more time, or somebody asked to stop; `what` is waited for.
    fn check(&self, what: impl Fn() -> String) -> Result<(), Failed> {
        if self.stop.asked() {
            return Err(Failed::Stopped(what()));
        }
        if !self.left().is_zero() {
            return Ok(());
        }
        let stray = self.stray.as_ref().map(|stray| format!("; {stray}")).unwrap_or_default();
        let seconds = self.time.as_secs_f64();
        Err(Failed::Said(format!("{} within {seconds} s (`trainer.timeout_s`){stray}", what())))
    }

    /// The ranks that have not come to rank 0.
    fn absent(&self) -> Vec<usize> {
        let here = |rank: &usize| self.lines.iter().any(|(known, _)| known == rank);
        (1..self.place.world).filter(|rank| !here(rank)).collect()
    }

    /// What happened to the ranks that are not here. Each rank has a clock of its own: one that began a moment before rank 0 leaves
    /// before it does.
    fn without(&self, absent: &[usize]) -> String {
        let (gone, never): (Vec<usize>, Vec<usize>) =
            absent.iter().partition(|rank| self.gone.contains(rank));
        match (never.is_empty(), gone.is_empty()) {
            (_, true) => format!("{} did not come", named(&never)),
            (true, _) => format!("{} came and left", named(&gone)),
            _ => format!("{} did not come, and {} came and left", named(&never), named(&gone)),
        }
    }

    /// Of rank 0: waits at the door until all others are there, and tells them the port of the store.
    pub(super) fn gather(&mut self, door: &TcpListener, store: u16) -> Result<(), Failed> {
        let mut unknown: Vec<Line> = Vec::new();
        let mut told = Instant::now();
        let nonblocking = door.set_nonblocking(true);
        nonblocking.map_err(|e| Failed::Said(e.to_string()))?;
        loop {
            while let Ok((stream, _)) = door.accept() {
                unknown.push(Line::new(stream));
                if unknown.len() > UNKNOWN {
                    unknown.remove(0);
                }
                // Whoever comes without end keeps nobody out.
                self.admit(&mut unknown);
            }
            self.admit(&mut unknown);
            self.lines.iter_mut().for_each(|(_, line)| drop(line.next()));
            let closed = self.lines.extract_if(.., |(_, line)| line.closed);
            self.gone.extend(closed.map(|(rank, _)| rank));
            let absent = self.absent();
            if absent.is_empty() {
                self.tell(&format!("go {store}"));
                return Ok(());
            }
            if told.elapsed() >= Duration::from_secs(1) {
                let numbers: Vec<String> = absent.iter().map(ToString::to_string).collect();
                self.tell(&format!("wait {}", numbers.join(" ")));
                told = Instant::now();
            }
            self.check(|| self.without(&absent)).inspect_err(|failed| {
                if let Failed::Said(why) = failed {
                    self.lines.iter_mut().for_each(|(_, line)| line.say(&format!("no {why}")));
                }
            })?;
            std::thread::sleep(LOOK);
        }
    }

    fn tell(&mut self, text: &str) {
        self.lines.iter_mut().for_each(|(_, line)| line.say(text));
    }

    /// Lets in who says that it is a rank of this run, and sends others away.
    fn admit(&mut self, unknown: &mut Vec<Line>) {
        let mut left = Vec::new();
        for mut line in unknown.drain(..) {
            let Some(text) = line.next() else {
                if !line.closed && line.since.elapsed() < SILENCE {
                    left.push(line);
                }
                continue;
            };
            let Some((rank, world)) = hello(&text) else { continue };
            let (own, here) =
                (self.place.world, self.lines.iter().any(|(known, _)| *known == rank));
            let refused = if world != own {
                Some(format!(
                    "rank {rank} was started as one of {world} ranks (WORLD_SIZE), and rank 0 as one of {own}"
                ))
            } else if rank == 0 || rank >= own || here {
                Some(format!("another process is rank {rank} of this run already"))
            } else {
                None
            };
            match refused {
                Some(why) => {
                    line.say(&format!("no {why}"));
                    tracing::warn!("a process that came to rank 0 was sent away: {why}");
                    self.stray = Some(why);
                }
                None => {
                    line.say("here");
                    self.lines.push((rank, line));
                }
            }
        }
        *unknown = left;
    }

    /// Of another rank: comes to rank 0 and waits until all are there; gives where the store is.
    pub(super) fn come(&mut self) -> Result<(IpAddr, u16), Failed> {
        let mut why = "nobody listens there".to_string();
        loop {
            for address in self.addresses(&why)? {
                self.check(|| format!("rank 0 did not come ({why})"))?;
                let left = self.left().min(CONNECT).max(LOOK);
                match TcpStream::connect_timeout(&address, left) {
                    Err(e) => why = e.to_string(),
                    Ok(stream) => match self.listen(Line::new(stream))? {
                        Ok(port) => return Ok((address.ip(), port)),
                        Err(said) => why = said,
                    },
                }
            }
            std::thread::sleep(AGAIN.min(self.left()));
        }
    }

    /// The addresses of rank 0's machine. The system's search for a name has no limit of its own.
    fn addresses(&self, why: &str) -> Result<Vec<SocketAddr>, Failed> {
        let (host, port) = (self.place.host.clone(), self.place.port);
        let (say, found) = mpsc::channel();
        let asking = memory::thread("address", move || {
            let found = (host.as_str(), port).to_socket_addrs();
            let _ = say.send(found.map(Iterator::collect::<Vec<_>>).map_err(|e| e.to_string()));
        });
        asking.map_err(|e| Failed::Said(e.to_string()))?;
        loop {
            match found.recv_timeout(AGAIN) {
                Ok(Ok(addresses)) => return Ok(addresses),
                Ok(Err(said)) => {
                    return Err(Failed::Said(format!("MASTER_ADDR `{}`: {said}", self.place.host)));
                }
                Err(_) => self.check(|| format!("rank 0 did not come ({why})"))?,
            }
        }
    }

    /// What rank 0 says: the store's port, or why this connection leads nowhere.
    fn listen(&mut self, mut line: Line) -> Result<Result<u16, String>, Failed> {
        let Place { rank, world, .. } = self.place;
        line.say(&format!("{HELLO} {rank} {world}"));
        let mut here = false;
        loop {
            while let Some(text) = line.next() {
                match text.split_once(' ').unwrap_or((&text, "")) {
                    ("here", _) => here = true,
                    ("wait", ranks) if here => {
                        self.missing = ranks.split(' ').filter_map(|n| n.parse().ok()).collect();
                    }
                    ("go", port) if here => match port.parse() {
                        Ok(port) => {
                            self.lines.push((0, line));
                            return Ok(Ok(port));
                        }
                        Err(_) => return Ok(Err("what it says is no port".into())),
                    },
                    ("no", why) => return Err(Failed::Said(shown(why))),
                    _ => {
                        return Ok(Err(
                            "something else than a rank of maskdiff listens there".into()
                        ));
                    }
                }
            }
            if line.closed {
                return match here {
                    true => Err(Failed::Said("rank 0 left before all ranks had come".into())),
                    false => Ok(Err("what listens there closes the connection".into())),
                };
            }
            let silent = "what listens there says nothing";
            if !here && line.since.elapsed() >= SILENCE {
                return Ok(Err(silent.into()));
            }
            self.check(|| match here {
                true if self.missing.is_empty() => "rank 0 did not go on".into(),
                true => format!("{} did not come", named(&self.missing)),
                false => format!("rank 0 did not come ({silent})"),
            })?;
            std::thread::sleep(LOOK);
        }
    }

    /// While the ranks join: an error when one of them has left, when there is no more time, or when somebody asked to stop.
    pub(super) fn go_on(&mut self) -> Result<(), Failed> {
        self.hear()?;
        let gone: Vec<usize> =
            self.lines.iter().filter(|(_, line)| line.closed).map(|(rank, _)| *rank).collect();
        if !gone.is_empty() {
            let why = format!("{} left before all had joined", named(&gone));
            self.tell(&format!("no {why}"));
            return Err(Failed::Said(why));
        }
        self.check(|| "the ranks could not be connected with each other".into())
    }

    /// Takes the lines that came: a rank has joined, while this one may still be joining, or there is a reason to end.
    fn hear(&mut self) -> Result<(), Failed> {
        for (rank, line) in &mut self.lines {
            while let Some(text) = line.next() {
                match text.strip_prefix("no ") {
                    Some(why) => return Err(Failed::Said(shown(why))),
                    None if text == "in" || text == "all" => self.ready.push(*rank),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Waits until all ranks have joined, each of which calls this when it has.
    pub(super) fn joined(&mut self) -> Result<(), Failed> {
        let is_first = self.place.rank == 0;
        if !is_first {
            self.tell("in");
        }
        loop {
            self.hear()?;
            let late = self.lines.iter().map(|(rank, _)| *rank);
            let late: Vec<usize> = late.filter(|rank| !self.ready.contains(rank)).collect();
            if late.is_empty() {
                if is_first {
                    self.tell("all");
                }
                return Ok(());
            }
            let gone = |(rank, line): &(usize, Line)| line.closed && late.contains(rank);
            let gone: Vec<usize> =
                self.lines.iter().filter(|line| gone(line)).map(|(rank, _)| *rank).collect();
            let failed = match gone.is_empty() {
                false => Err(Failed::Said(format!("{} left before all had joined", named(&gone)))),
                true => self.check(|| format!("{} did not join", named(&late))),
            };
            failed.inspect_err(|failed| {
                if let Failed::Said(why) = failed {
                    self.lines.iter_mut().for_each(|(_, line)| line.say(&format!("no {why}")));
                }
            })?;
            std::thread::sleep(LOOK);
        }
    }
}

/// The rank and the number of ranks in a greeting.
fn hello(text: &str) -> Option<(usize, usize)> {
    let (rank, world) = text.strip_prefix(HELLO)?.trim_start().split_once(' ')?;
    Some((rank.parse().ok()?, world.parse().ok()?))
}

/// Whether a host is this machine's loopback, which no other machine reaches.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.to_lowercase();
    let named = ["localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"];
    named.contains(&host.as_str())
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A listener of rank 0: at the loopback where the ranks meet there, else at all addresses of the machine.
pub(super) fn door(host: &str, port: u16) -> std::io::Result<TcpListener> {
    if is_loopback(host) {
        return TcpListener::bind((host, port));
    }
    let bound = TcpListener::bind((IpAddr::from([0u16; 8]), port));
    match bound {
        // A machine without IPv6.
        Err(e) if e.kind() != ErrorKind::AddrInUse => {
            TcpListener::bind((IpAddr::from([0u8; 4]), port))
        }
        bound => bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_is_one_by_its_name_or_its_address() {
        for host in ["127.0.0.1", "127.1.2.3", "::1", "LocalHost", "a.localhost"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["n07", "10.0.0.1", "localhost.example.org", "::", "0.0.0.0"] {
            assert!(!is_loopback(host), "{host}");
        }
        assert_eq!(hello("maskdiff-rank 1 2"), Some((1, 2)));
        assert_eq!((hello("GET / HTTP/1.1"), hello("maskdiff-rank x 2")), (None, None));
    }

    /// Runs rank 0 against what `others` do at its door.
    fn gathered(
        world: usize,
        seconds: f64,
        others: impl FnOnce(SocketAddr) + Send,
    ) -> Result<(), Failed> {
        let door = door("127.0.0.1", 0).unwrap();
        let address = door.local_addr().unwrap();
        let place =
            Place { rank: 0, world, local_rank: 0, host: "127.0.0.1".into(), port: address.port() };
        let stop = Stop::default();
        let mut meeting = Meeting::new(&place, &stop, Duration::from_secs_f64(seconds));
        // At the same time: the system holds few connections that nobody accepts.
        std::thread::scope(|scope| {
            scope.spawn(move || others(address));
            meeting.gather(&door, 7)
        })
    }

    fn said(result: Result<(), Failed>) -> String {
        match result {
            Err(Failed::Said(said)) => said,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_rank_keeps_nobody_out() {
        let mut kept = Vec::new();
        gathered(2, 20.0, |address| {
            for i in 0..300 {
                let mut stream = TcpStream::connect(address).unwrap();
                match i % 3 {
                    0 => {}
                    1 => drop(stream.write_all(b"GET / HTTP/1.1\r\n\r\n")),
                    _ => kept.push(stream),
                }
                if i == 299 {
                    let mut rank = TcpStream::connect(address).unwrap();
                    rank.write_all(b"maskdiff-rank 1 2\n").unwrap();
                    kept.push(rank);
                }
            }
        })
        .unwrap();
    }

    #[test]
    fn a_rank_that_came_and_left_is_not_one_that_never_came() {
        let text = said(gathered(4, 0.5, |address| {
            for word in ["maskdiff-rank 2 4\n", "maskdiff-rank 3 4\n"] {
                TcpStream::connect(address).unwrap().write_all(word.as_bytes()).unwrap();
            }
        }));
        assert!(
            text.contains("rank 1 did not come, and ranks 2, 3 came and left within"),
            "{text}"
        );
    }

    #[test]
    fn the_missing_and_the_wrong_are_named() {
        let mut kept = Vec::new();
        let text = said(gathered(4, 0.5, |address| {
            for word in ["maskdiff-rank 2 4\n", "maskdiff-rank 1 3\n", "maskdiff-rank 2 4\n"] {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(word.as_bytes()).unwrap();
                kept.push(stream);
            }
        }));
        assert!(text.contains("ranks 1, 3 did not come within 0.5 s"), "{text}");
        let mut answers = kept.into_iter().map(|mut stream| {
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            text
        });
        let (there, other, twice) =
            (answers.next().unwrap(), answers.next().unwrap(), answers.next().unwrap());
        assert!(
            there.starts_with("here\n") && there.contains("ranks 1, 3 did not come"),
            "{there}"
        );
        assert!(other.contains("one of 3 ranks") && other.contains("one of 4"), "{other}");
        assert!(twice.contains("rank 2 of this run already"), "{twice}");
    }
}
