//! The connection to an object store, whose answers have bounds: no list of objects and no part of a file that we ask for is longer.

use std::pin::Pin;

use futures_util::StreamExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

/// The longest answer: four of the parts in which files are read.
const LONGEST: usize = 32 << 20;

/// Makes such connections.
#[derive(Debug, Default)]
pub(super) struct Bounded;

impl HttpConnector for Bounded {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Service(HttpClient);

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Service {
    fn call<'life0, 'async_trait>(&'life0 self, request: HttpRequest) -> Answer<'async_trait>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let (parts, body) = self.0.execute(request).await?.into_parts();
            let (mut stream, mut bytes) = (body.bytes_stream(), Vec::new());
            // Read here, within the time and the tries of the request.
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|e| match e.kind() {
                    // An answer that breaks off is asked for again.
                    HttpErrorKind::Unknown | HttpErrorKind::Decode => {
                        HttpError::new(HttpErrorKind::Interrupted, e)
                    }
                    _ => e,
                })?;
                if bytes.len() + chunk.len() > LONGEST {
                    let said = std::io::Error::other("an answer of more than 32 MiB");
                    return Err(HttpError::new(HttpErrorKind::Unknown, said));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(bytes)))
        })
    }
}
