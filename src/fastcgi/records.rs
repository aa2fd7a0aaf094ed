//! A response as STDOUT records: what stands between its bytes, and how far that was sent. A transformation of a plan's
//! segments: it knows nothing of what they are.

use super::{CONTENT_MAX, HEADER, REQUEST_COMPLETE, STDOUT, end_request, header};

/// The most that stands between: the empty record that ends the stream, and END_REQUEST.
pub(crate) const TEXT_MAX: usize = HEADER + 16;

/// How the responses of a connection are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The connection is kept afterwards.
    pub(crate) keep: bool,
    /// One that is cut short between two records is ended all the same: for a front server that would wait for ever
    /// for what doesn't come, and notices the missing bytes by itself.
    pub(crate) ends_short: bool,
}

/// One response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Records {
    id: u16,
    /// Of the record under way: all of its content, and what is left of it.
    length: u16,
    left: u16,
    text: Text,
    /// How much of the text was sent.
    at: u8,
    pub(crate) ending: Ending,
}

/// What stands before the next content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    None,
    /// The header of the record under way.
    Header,
    /// The end of the stream, and of the request.
    Tail,
    /// That has been sent.
    Ended,
}

impl Records {
    pub(crate) fn new(id: u16, ending: Ending) -> Self {
        Self { id, length: 0, left: 0, text: Text::None, at: 0, ending }
    }

    /// Begins a record if none is under way, for content of which at least `length` bytes follow.
    pub(crate) fn begin(&mut self, length: u64) {
        if self.is_between() && length > 0 {
            // At most a u16, by the line above.
            self.length = length.min(CONTENT_MAX) as u16;
            self.left = self.length;
            self.text = Text::Header;
        }
    }

    /// No record is under way, so that another could begin, or all end.
    pub(crate) fn is_between(&self) -> bool {
        self.left == 0 && self.text == Text::None
    }

    /// Nothing of the record under way was sent, so that it can be taken back.
    pub(crate) fn take_back(&mut self) {
        if self.text == Text::Header && self.at == 0 {
            (self.text, self.left) = (Text::None, 0);
        }
    }

    /// Part of a header was sent, or of the end.
    pub(crate) fn is_touched(&self) -> bool {
        self.at > 0 || self.has_ended() || self.text == Text::None && self.left > 0
    }

    /// The stream ends here.
    pub(crate) fn finish(&mut self) {
        if self.is_between() {
            self.text = Text::Tail;
        }
    }

    /// The end of the stream was sent.
    pub(crate) fn has_ended(&self) -> bool {
        self.text == Text::Ended
    }

    /// Content that belongs to the record under way.
    pub(crate) fn left(&self) -> u64 {
        u64::from(self.left)
    }

    /// What has to be sent before more content.
    pub(crate) fn text<'a>(&self, space: &'a mut [u8; TEXT_MAX]) -> &'a [u8] {
        match self.text {
            Text::None | Text::Ended => &[],
            Text::Header => {
                space[..HEADER].copy_from_slice(&header(STDOUT, self.id, self.length));
                &space[usize::from(self.at)..HEADER]
            }
            Text::Tail => {
                *space = self.tail();
                &space[usize::from(self.at)..]
            }
        }
    }

    /// What stands behind all content.
    pub(crate) fn tail(&self) -> [u8; TEXT_MAX] {
        let mut tail = [0; TEXT_MAX];
        let (empty, end) = tail.split_at_mut(HEADER);
        empty.copy_from_slice(&header(STDOUT, self.id, 0));
        end.copy_from_slice(&end_request(self.id, 0, REQUEST_COMPLETE));
        tail
    }

    /// So many bytes were sent: text, content, and perhaps the end along with the last of it. Returns how many of them
    /// are content.
    pub(crate) fn pass(&mut self, count: usize) -> usize {
        let rest = self.pass_text(count);
        let content = rest.min(usize::from(self.left));
        self.left -= content as u16; // At most a u16, by the line above.
        if rest > content {
            self.finish();
            self.pass_text(rest - content);
        }
        content
    }

    /// Of `count` bytes that were sent, the first are `text`. Returns how many are not.
    fn pass_text(&mut self, count: usize) -> usize {
        let (length, next) = match self.text {
            Text::None | Text::Ended => return count,
            Text::Header => (HEADER, Text::None),
            Text::Tail => (TEXT_MAX, Text::Ended),
        };
        let passed = count.min(length - usize::from(self.at));
        self.at += passed as u8; // At most TEXT_MAX.
        if usize::from(self.at) == length {
            (self.at, self.text) = (0, next);
        }
        count - passed
    }
}
