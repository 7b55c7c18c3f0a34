//! Who hears of long work on a corpus.

use std::cell::RefCell;

use maskdiff_base::error::Result;
use maskdiff_base::report::Report;
use maskdiff_base::stop::Stop;

/// Hears of long work on a corpus, and may end it.
#[derive(Debug)]
pub struct Observer<'a> {
    report: RefCell<&'a mut Report>,
    stop: &'a Stop,
    what: RefCell<&'static str>,
}

impl<'a> Observer<'a> {
    /// Tells `report`; work ends when somebody asked to stop.
    pub fn new(report: &'a mut Report, stop: &'a Stop) -> Self {
        Self { report: RefCell::new(report), stop, what: RefCell::new("") }
    }

    /// So much of `what` is done, of `total` where that is known.
    pub(crate) fn tick(
        &self,
        what: &'static str,
        done: u64,
        total: u64,
        message: &str,
    ) -> Result<()> {
        let mut report = self.report.borrow_mut();
        if self.what.replace(what) != what {
            report.finish();
            report.start(what, 0, total.cast_signed());
        }
        report.progress(what, done.cast_signed(), total.max(done).cast_signed(), message);
        drop(report);
        self.check()
    }

    /// An error when somebody asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.stop.asked() {
            return Ok(());
        }
        self.report.borrow_mut().finish();
        let message = "stopped while the corpus was prepared; nothing half-made is left".into();
        Err(self.stop.error(message))
    }

    pub(crate) fn done(&self) {
        self.what.replace("");
        self.report.borrow_mut().finish();
    }

    pub(crate) fn note(&self, text: &str) {
        self.report.borrow().note(text);
    }
}
