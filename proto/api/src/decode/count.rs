//! Counting what a JSON text is made of before anything is made of it.

use std::slice::Iter;

/// Why a JSON text is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// More objects and lists than this.
    #[error("too many objects and lists: at most {0} are allowed")]
    TooMany(usize),
    /// More of them inside each other than this.
    #[error("exceeded max depth of {0}")]
    TooDeep(usize),
}

/// How many objects and lists a JSON text has. Refuses one with more than `most`, or more than `depth` of them inside each
/// other.
///
/// For texts that are read without a schema: an object takes about 640 bytes in memory and can be written in seven,
/// `{"":0},`. Looks at each byte once and keeps none. What is no JSON is counted up to where it goes wrong as if it were,
/// and is left to the reader to refuse: nothing behind that place is ever made.
pub fn count_collections(json: &[u8], depth: usize, most: usize) -> Result<usize, Excess> {
    let (mut count, mut open) = (0, 0_usize);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_text(&mut bytes),
            b'{' | b'[' => {
                (count, open) = (count + 1, open + 1);
                if count > most {
                    return Err(Excess::TooMany(most));
                }
                if open > depth {
                    return Err(Excess::TooDeep(depth));
                }
            }
            b'}' | b']' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    Ok(count)
}

/// Goes on behind the quotation mark that ends a text.
fn skip_text(bytes: &mut Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            // Whatever follows ends nothing.
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_lists_are_counted_and_nothing_in_texts() {
        let count = |json: &str, most| count_collections(json.as_bytes(), 9, most);
        assert_eq!(count(r#"{"a":[{},{}]}"#, 4), Ok(4));
        assert_eq!(count(r#"{"a":[{},{}]}"#, 3), Err(Excess::TooMany(3)));
        assert_eq!(count(r#"["[[[","\"[{","\\",[]]"#, 2), Ok(2));
        assert_eq!(
            count(r#"["[[[","\"[{","\\",[]]"#, 1),
            Err(Excess::TooMany(1))
        );
        for (scalar, most) in [("1", 0), ("\"{\"", 0), ("", 0), ("]]]", 0), ("\"\\", 0)] {
            assert_eq!(count(scalar, most), Ok(0), "{scalar}");
        }
    }

    #[test]
    fn depth_is_that_of_the_json_reader() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let deepest = crate::decode::MAX_DEPTH;
        let counted = |text: &str| count_collections(text.as_bytes(), deepest, usize::MAX);
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
        assert_eq!(counted(&nested(deepest)), Ok(deepest));
        assert!(read(&nested(deepest)));
        assert_eq!(counted(&nested(deepest + 1)), Err(Excess::TooDeep(deepest)));
        assert!(!read(&nested(deepest + 1)));
        assert_eq!(
            counted(&nested(9).repeat(100)),
            Ok(900),
            "beside each other"
        );
    }
}
