//! Connections whose client must read: one that takes nothing of its answer for too long is closed, and what it holds is free again. A client that reads
//! slowly but steadily is waited for.

use std::future::Future as _;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::os::fd::AsRawFd as _;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// A connection of which it is known how much its reader has still to take.
pub(crate) trait Queued {
    /// Bytes that were written and that the other machine has not received; `None` where that cannot be told.
    fn queued(&self) -> Option<u64>;
}

impl Queued for TcpStream {
    /// A socket takes more bytes only once a third of its buffer, a megabyte or more, is free again: a slow reader is seen by this alone.
    #[expect(unsafe_code, reason = "a call of the system")]
    fn queued(&self) -> Option<u64> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open as long as the stream, and the call writes one number to where `bytes` lies.
        let code = unsafe { libc::ioctl(self.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        u64::try_from(bytes).ok().filter(|_| code == 0)
    }
}

/// How long the reader has taken nothing.
#[derive(Debug)]
struct Wait {
    end: Pin<Box<Sleep>>,
    /// What was queued when it began.
    queued: Option<u64>,
}

/// A connection that waits for its reader so long and no longer.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    inner: S,
    limit: Duration,
    waits: Option<Wait>,
}

impl<S: Queued> Patient<S> {
    pub(crate) fn new(inner: S, limit: Duration) -> Self {
        Self { inner, limit, waits: None }
    }

    /// What a try to write has given; an error where the time of its reader is over.
    fn waited<T>(&mut self, tried: Poll<Result<T>>, context: &mut Context<'_>) -> Poll<Result<T>> {
        if tried.is_ready() {
            self.waits = None;
            return tried;
        }
        let Self { inner, limit, waits } = self;
        let waits = waits.get_or_insert_with(|| Wait {
            end: Box::pin(tokio::time::sleep(*limit)),
            queued: inner.queued(),
        });
        while waits.end.as_mut().poll(context).is_ready() {
            let left = inner.queued();
            // Nothing is written meanwhile, so less in the queue is what the reader has taken.
            if !matches!((left, waits.queued), (Some(left), Some(before)) if left < before) {
                let said = format!("the client has read nothing for {} s", limit.as_secs_f64());
                return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, said)));
            }
            waits.queued = left;
            waits.end.as_mut().reset(Instant::now() + *limit);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        pin!(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Queued + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let tried = pin!(&mut self.inner).poll_write(context, bytes);
        self.waited(tried, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let tried = pin!(&mut self.inner).poll_write_vectored(context, parts);
        self.waited(tried, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let tried = pin!(&mut self.inner).poll_flush(context);
        self.waited(tried, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let tried = pin!(&mut self.inner).poll_shutdown(context);
        self.waited(tried, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A reader that takes N parts; then what is queued each time that it is asked, and the last of these for ever.
    struct Reader(usize, RefCell<Vec<u64>>);

    impl Queued for Reader {
        fn queued(&self) -> Option<u64> {
            let mut all = self.1.borrow_mut();
            if all.len() > 1 { all.pop() } else { all.first().copied() }
        }
    }

    impl AsyncWrite for Reader {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<Result<usize>> {
            match self.0.checked_sub(1) {
                Some(left) => {
                    self.0 = left;
                    Poll::Ready(Ok(bytes.len()))
                }
                None => Poll::Pending,
            }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn who_reads_nothing_is_given_up() {
        let limit = Duration::from_millis(200);
        let mut connection = Patient::new(Reader(2, RefCell::default()), limit);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().unwrap();
        let begun = Instant::now();
        let mut write = || {
            runtime.block_on(std::future::poll_fn(|context| {
                Pin::new(&mut connection).poll_write(context, b"abc")
            }))
        };
        assert_eq!([write().unwrap(), write().unwrap()], [3, 3]);
        assert!(begun.elapsed() < limit, "two parts were taken at once");
        let error = write().unwrap_err();
        assert!(error.kind() == ErrorKind::TimedOut && begun.elapsed() >= limit, "{error}");
    }
    /// Who takes a little in each limit is no reason to give up, though nothing more can be written yet.
    #[test]
    fn who_reads_slowly_is_waited_for() {
        let limit = Duration::from_millis(100);
        let queued = RefCell::new(vec![70, 70, 80, 90, 100]);
        let mut connection = Patient::new(Reader(0, queued), limit);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().unwrap();
        let begun = Instant::now();
        let write =
            std::future::poll_fn(|context| Pin::new(&mut connection).poll_write(context, b"abc"));
        let error = runtime.block_on(write).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() >= limit * 4, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_socket_tells_what_was_not_taken() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_io().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let reader = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (writer, _) = listener.accept().await.unwrap();
            assert_eq!(writer.queued(), Some(0));
            writer.writable().await.unwrap();
            // More than both buffers hold.
            while writer.try_write(&[0; 1 << 16]).is_ok() {}
            assert!(writer.queued().unwrap() > 0);
            drop(reader);
        });
    }
}
