//! Numbers of completions as a job lists them: `1,3-5,7`, in growing order.

/// The first and the last of an interval, each below `completions`.
type Interval = (i32, i32);

fn number(text: &str, completions: i32) -> Result<i32, String> {
    let Ok(number) = text.parse::<i64>() else {
        return Err(format!(
            "cannot convert string to integer for index: {text:?}"
        ));
    };
    if number >= i64::from(completions) {
        return Err(format!("too large index: {text:?}"));
    }
    Ok(i32::try_from(number).unwrap_or_default())
}

fn interval(text: &str, completions: i32) -> Result<Interval, String> {
    let mut parts = text.split('-');
    let (first, last, more) = (parts.next(), parts.next(), parts.next());
    if more.is_some() {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let first = number(first.unwrap_or_default(), completions)?;
    let Some(last) = last else {
        return Ok((first, first));
    };
    let last = number(last, completions)?;
    if first >= last {
        return Err(not_growing(first, last));
    }
    Ok((first, last))
}

fn not_growing(previous: i32, current: i32) -> String {
    format!("non-increasing order, previous: {previous}, current: {current}")
}

/// How many indexes a list names, each below `completions`; or what is wrong with it.
pub(super) fn count(list: &str, completions: i32) -> Result<i32, String> {
    let mut total: i32 = 0;
    let mut previous: Option<i32> = None;
    for part in list.split(',').filter(|_| !list.is_empty()) {
        let (first, last) = interval(part, completions)?;
        if let Some(previous) = previous.filter(|previous| *previous >= first) {
            return Err(not_growing(previous, first));
        }
        total = total.saturating_add(last.saturating_sub(first).saturating_add(1));
        previous = Some(last);
    }
    Ok(total)
}

/// An index that two lists share, the first that is found. What is wrong with a list is told elsewhere.
pub(super) fn shared(one: &str, other: &str, completions: i32) -> Option<i32> {
    if one.is_empty() || other.is_empty() {
        return None;
    }
    let read = |part: &str| interval(part, completions).ok();
    let mut ones = one.split(',').filter_map(read);
    let mut others = other.split(',').filter_map(read);
    let (mut one, mut other) = (ones.next()?, others.next()?);
    loop {
        if one.0 <= other.1 && other.0 <= one.1 {
            return Some(one.0.max(other.0));
        }
        match one.0 <= other.0 {
            true => one = ones.next()?,
            false => other = others.next()?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_grow_and_stay_below_what_is_to_be_completed() {
        for (list, counted) in [("", 0), ("0", 1), ("1,3-5,7", 5), ("0-7", 8)] {
            assert_eq!(count(list, 8), Ok(counted), "{list}");
        }
        for (list, wrong) in [
            ("x", "cannot convert string to integer for index: \"x\""),
            ("8", "too large index: \"8\""),
            ("1-8", "too large index: \"8\""),
            ("3-1", "non-increasing order, previous: 3, current: 1"),
            ("1-3,3", "non-increasing order, previous: 3, current: 3"),
            ("1,", "cannot convert string to integer for index: \"\""),
            (
                "1-2-3",
                "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
        ] {
            let told = count(list, 8).err().unwrap_or_default();
            assert_eq!(told, wrong, "{list}");
        }
    }

    #[test]
    fn what_two_lists_share_is_found() {
        assert_eq!(shared("0,2-4", "1,5", 8), None);
        assert_eq!(shared("0,2-4", "1,3", 8), Some(3));
        assert_eq!(shared("x,2", "2", 8), Some(2));
        assert_eq!(shared("", "2", 8), None);
    }
}
