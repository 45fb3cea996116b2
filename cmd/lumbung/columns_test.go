package main

import (
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestLayout(t *testing.T) {
	peer := "12D3KooWEaDWjyQJDLwaF87az9ve5xRMjRhX9UxWvsnW3Bp3Svp6"
	for name, c := range map[string]struct {
		width int
		rows  [][]any
		want  string
	}{
		"a file is as wide as it needs": {
			0,
			[][]any{{"PEER", "REGION", "STATE"}, {peer, "-", "live"}},
			"PEER                                                  REGION  STATE\n" + peer + "  -       live\n",
		},
		"what fits stays": {
			80,
			[][]any{{"A", "B"}, {"long one", "-"}, {"x", "-"}},
			"A         B\nlong one  -\nx         -\n",
		},
		"columns that say nothing go": {
			20,
			[][]any{{"NAME", "REGION", "NOTE"}, {"first", "-", "0123456789"}},
			"NAME   NOTE\nfirst  0123456789\n",
		},
		"then blanks": {
			16,
			[][]any{{"NAME", "B", "C"}, {"0123456", "01", "01234"}},
			"NAME    B  C\n0123456 01 01234\n",
		},
		"the rest continues": {
			58,
			[][]any{{"PEER", "FREE", "STATE"}, {peer, "1/1", "live"}, {peer, "", "silent"}},
			"PEER                                                 FREE\n  STATE\n" + peer + " 1/1\n  live\n" + peer + "\n  silent\n",
		},
		"a last column's words are wrapped": {
			40,
			[][]any{{"RAIL", "TRUST"}, {"credit", "owed on the word of the peer alone; nothing enforces it"}},
			"RAIL   TRUST\ncredit owed on the word of the peer\n       alone; nothing enforces it\n",
		},
		"values are wrapped, words are not": {
			34,
			[][]any{{"home", "/a/very/long/folder/of/somebody/else"}, {"running", "pid 1, started just now, 5.5 MB of memory"}},
			"home     /a/very/long/folder/of/somebody/else\nrunning  pid 1, started just now,\n         5.5 MB of memory\n",
		},
		"without room it goes below": {
			40,
			[][]any{{"ok", "bootstrap 12D3KooWEaDWjyQJDLw", "answered in 2ms, TCP works, UDP works"}},
			"ok  bootstrap 12D3KooWEaDWjyQJDLw\n    answered in 2ms, TCP works, UDP\n    works\n",
		},
		"tables are apart": {
			80,
			[][]any{{"job", "j1"}, {""}, {"TASK", "STATE"}, {"0", "done"}},
			"job  j1\n\nTASK  STATE\n0     done\n",
		},
		"a name is given once": {
			80,
			[][]any{{"addresses", "a"}, {"", "b"}},
			"addresses  a\n           b\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t)
			a.con.outTTY, a.con.outWidth = c.width > 0, func() int { return c.width }
			err := a.table(func(w io.Writer) {
				for _, r := range c.rows {
					row(w, r...)
				}
			})
			if err != nil || a.out.String() != c.want {
				t.Errorf("%v, got\n%s\nwant\n%s", err, a.out.String(), c.want)
			}
		})
	}
}

func TestLayoutLosesNoWord(t *testing.T) {
	rows := []string{"JOB\tNAME\tSTATE\tNOTE", "j1\tübung\tdone\tall that was asked for came back", "j2\t-\tfailed (127)\tcommand not found: no such file"}
	for width := 20; width <= 100; width++ {
		got := layout(rows, width)
		if n, want := len(strings.Fields(got)), len(strings.Fields(strings.Join(rows, " "))); n != want {
			t.Errorf("%d columns: %d words of %d:\n%s", width, n, want, got)
		}
		for line := range strings.SplitSeq(got, "\n") {
			if n := utf8.RuneCountInString(line); n > width {
				t.Errorf("a line of %d in %d columns: %q", n, width, line)
			}
		}
	}
}
