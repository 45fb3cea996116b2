package job

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// sizeUnits are the units of a size, lower case: those of makers count in
// thousands, those with an i, and docker's single letters, in 1024.
var sizeUnits = map[string]uint64{
	"": 1, "b": 1,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50,
	"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50,
}

// ParseSize reads a number of bytes: 16GB (thousands), 16GiB or docker's 16g
// (1024), or plain bytes. A part of a byte is dropped.
func ParseSize(s string) (uint64, error) {
	text := strings.TrimSpace(s)
	i := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if i < 0 {
		i = len(text)
	}
	unit, known := sizeUnits[strings.ToLower(strings.TrimSpace(text[i:]))]
	n, ok := scaled(text[:i], unit)
	if !known || !ok {
		return 0, fmt.Errorf("%q is no size; write 512MB, 16GB or 1.5GiB", s)
	}
	return n, nil
}

// scaled is a decimal number times a unit, rounded down; exact, for floating
// point would lose bytes. False when it is no number or does not fit.
func scaled(text string, unit uint64) (uint64, bool) {
	whole, frac, _ := strings.Cut(text, ".")
	if whole+frac == "" || strings.Contains(frac, ".") || len(frac) > 18 {
		return 0, false
	}
	digits := whole + frac
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, false
	}
	hi, lo := bits.Mul64(n, unit)
	by := uint64(1)
	for range frac {
		by *= 10
	}
	if hi >= by {
		return 0, false
	}
	q, _ := bits.Div64(hi, lo, by)
	return q, true
}

// FormatSize shows a number of bytes in thousands, such as "1.5 GB".
func FormatSize(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	unit, div := 0, uint64(1000)
	for n/div >= 1000 && unit < len(units)-1 {
		unit, div = unit+1, div*1000
	}
	tenths := n / (div / 10)
	return fmt.Sprintf("%d.%d %cB", tenths/10, tenths%10, units[unit])
}

// ParseCPUs reads a number of cores, such as 4 or 0.5, as thousandths.
func ParseCPUs(s string) (uint32, error) {
	const most = 4096
	text := strings.TrimSpace(s)
	_, frac, _ := strings.Cut(text, ".")
	n, ok := scaled(text, 1000)
	if !ok || n == 0 || n > most*1000 || len(strings.TrimRight(frac, "0")) > 3 {
		return 0, fmt.Errorf("%q is no number of cores; write 4 or 0.5, in steps of 0.001 up to %d", s, most)
	}
	return uint32(n), nil
}

// maxDuration is the longest time that a limit may be; messages carry no more.
const maxDuration = 400 * 24 * time.Hour

// ParseDuration reads a time such as 90s, 30m, 1h30m or 2d.
func ParseDuration(s string) (time.Duration, error) {
	text := strings.TrimSpace(s)
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(text)
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is no duration; write 1h, 30m or 90s", s)
	case d <= 0:
		return 0, fmt.Errorf("%q is not above 0; write 1h, 30m or 90s", s)
	case d < time.Millisecond || d > maxDuration:
		return 0, fmt.Errorf("%q is not between 1ms and %dd", s, maxDuration/(24*time.Hour))
	}
	return d, nil
}

// ParseRange reads the numbers of an array: 1-240, 1-240:4 for four a task, or
// a single number. The chunk is 0 when none is given.
func ParseRange(s string) (first, last, chunk int, err error) {
	bad := fmt.Errorf("%q is no range; write 1-240, or 1-240:4 for four numbers a task", s)
	text, by, chunked := strings.Cut(strings.TrimSpace(s), ":")
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	if first, err = number(from); err != nil {
		return 0, 0, 0, bad
	}
	if last, err = number(to); err != nil {
		return 0, 0, 0, bad
	}
	if chunked {
		if chunk, err = number(by); err != nil || chunk == 0 {
			return 0, 0, 0, bad
		}
	}
	if last < first {
		return 0, 0, 0, fmt.Errorf("%q ends before it begins; write the smaller number first", s)
	}
	return first, last, chunk, nil
}

// number reads a plain whole number, small enough to count with.
func number(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err
}
