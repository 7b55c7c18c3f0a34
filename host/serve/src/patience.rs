//! Connections whose client must read: one that takes nothing of its answer for too long is closed, and what it holds is free again.

use std::future::Future as _;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A connection that waits for its reader so long and no longer.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    inner: S,
    limit: Duration,
    /// Since the reader has taken nothing.
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(crate) fn new(inner: S, limit: Duration) -> Self {
        Self { inner, limit, waits: None }
    }

    /// What a try to write has given; an error where the time of its reader is over.
    fn waited<T>(&mut self, tried: Poll<Result<T>>, context: &mut Context<'_>) -> Poll<Result<T>> {
        if tried.is_ready() {
            self.waits = None;
            return tried;
        }
        let limit = self.limit;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match waits.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                let said = format!("the client has read nothing for {} s", limit.as_secs_f64());
                Poll::Ready(Err(Error::new(ErrorKind::TimedOut, said)))
            }
        }
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
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
    use std::time::Instant;

    /// A reader that takes N parts.
    struct Reader(usize);

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
        let mut connection = Patient::new(Reader(2), limit);
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
}
