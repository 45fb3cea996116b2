package protocol

import (
	"net/url"
	"strings"
)

// maxReadyPath bounds the path of a probe, its query included.
const maxReadyPath = 1024

func (r *Ready) check() error {
	switch {
	case r == nil:
		return nil
	case r.GetPort() == 0 || r.GetPort() > 1<<16-1:
		return bad("ready: port %d, want 1 to %d", r.GetPort(), 1<<16-1)
	case r.GetWithinMs() <= 0 || r.GetWithinMs() > maxReadyMs:
		return bad("ready: within %d ms is not between 1 and %d", r.GetWithinMs(), maxReadyMs)
	}
	return ProbePath(r.GetHttp())
}

func (t *Task) checkIdle() error {
	if ms := t.GetIdleStopMs(); ms != 0 && (ms < minIdleMs || ms > maxMillis) {
		return bad("idle stop of %d ms is not between %d and %d", ms, minIdleMs, maxMillis)
	}
	return nil
}

// ProbePath says what is wrong with the path of an HTTP probe: an absolute
// path, perhaps with a query, of printable ASCII without blanks.
func ProbePath(p string) error {
	if len(p) > maxReadyPath {
		return bad("probe path is %d bytes long, over %d", len(p), maxReadyPath)
	}
	if !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") {
		return bad("probe path %.60q: want one that begins with a single /, such as /health", p)
	}
	for i := range len(p) {
		if p[i] <= ' ' || p[i] > '~' || p[i] == '#' {
			return bad("probe path %.60q: want printable ASCII without blanks and #", p)
		}
	}
	if _, err := url.ParseRequestURI(p); err != nil {
		return bad("probe path %.60q cannot be parsed", p)
	}
	return nil
}
