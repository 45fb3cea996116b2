package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node"
	"github.com/lumbung-net/lumbung/node/client"
)

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		code   int
		word   string
		remedy string
	}{
		"the job's own code":    {&exitError{code: 42}, 42, "", ""},
		"bad command line":      {fmt.Errorf("flags: %w", usageErrf("no such flag")), 2, "usage", "lumbung help"},
		"nothing placed":        {&unplacedError{why: unplaced{Heard: 1, Reasons: map[string]int{"REASON_BUSY": 1}}}, 2, "unplaced", "in a while"},
		"no node":               {fmt.Errorf("status: %w", client.ErrNoNode), 125, "no_node", "lumbung up -d"},
		"a job that cannot be":  {fmt.Errorf("image: %w", job.ErrSpec), 2, "bad_job", "correct the job"},
		"bad configuration":     {fmt.Errorf("x: %w", node.ErrConfig), 2, "bad_configuration", "lumbung up --help"},
		"a job to mend so":      {withRemedy(fmt.Errorf("image: %w", job.ErrSpec), "name one"), 2, "bad_job", "name one"},
		"the node refuses":      {&client.Problem{Status: 404, Detail: "no job x", Code: "not_found", Remedy: "lumbung ps -a"}, 125, "not_found", "lumbung ps -a"},
		"the node calls it bad": {&client.Problem{Status: 422, Detail: "memory: too much", Code: "bad_job"}, 2, "bad_job", "correct the job"},
		"refused without a why": {&client.Problem{Status: 422, Detail: "no", Code: "x"}, 2, "x", "lumbung help"},
		"no answer":             {fmt.Errorf("peer x: %w", context.DeadlineExceeded), 125, "timeout", "lumbung status"},
		"no right":              {&fs.PathError{Op: "open", Path: "/secret", Err: fs.ErrPermission}, 125, "permission", "/secret"},
		"interrupted":           {fmt.Errorf("x: %w", errInterrupted), 130, "interrupted", "lumbung ps"},
		"left while cancelling": {withRemedy(errInterrupted, "lumbung wait j"), 130, "interrupted", "lumbung wait j"},
		"anything else":         {errors.New("disk on fire"), 125, "", "lumbung doctor"},
		"own remedy":            {withRemedy(errors.New("boom"), "duck %d", 2), 125, "", "duck 2"},
	} {
		t.Run(name, func(t *testing.T) {
			v := judge(c.err)
			if v.Code != c.code || v.ErrorCode != c.word || !strings.Contains(v.Remedy, c.remedy) {
				t.Errorf("got %+v", v)
			}
			if v.ExitSource != sourceLumbung {
				t.Errorf("source %q", v.ExitSource)
			}
			if v.told != (c.remedy == "") {
				t.Errorf("an error without a remedy: %+v", v)
			}
			if strings.Contains(v.Error, "context deadline exceeded") {
				t.Errorf("bare words: %q", v.Error)
			}
		})
	}
}

func TestFinishWords(t *testing.T) {
	a := newTestApp(t)
	if code := a.finish(withRemedy(errors.New("the disk is full"), "make room")); code != 125 {
		t.Errorf("code %d", code)
	}
	if got := a.err.String(); got != "error: the disk is full\n  try: make room\n" {
		t.Errorf("words %q", got)
	}
	if a.out.String() != "" {
		t.Errorf("stdout %q", a.out.String())
	}

	a = newTestApp(t)
	if code := a.main([]string{"ps", "-o", "json"}); code != 125 {
		t.Errorf("code %d", code)
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(a.out.String()), &v); err != nil {
		t.Fatal(err)
	}
	if v["exit_source"] != "lumbung" || v["code"] != 125.0 || v["remedy"] != "lumbung up -d" {
		t.Errorf("JSON %v", v)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"rnu"},
		{"image", "lod"},
		{"run"},
		{"run", "--gpus"},
		{"inspect"},
		{"ps", "extra"},
		{"ps", "-o", "xml"},
		{"completion", "tcsh"},
		{"up", "--cpus", "many"},
		{"devnet", "--providers", "0"},
		{"logs", "--since", "yesterday", "j1"},
		{"run", "--array", "9-1", "img"},
		{"run", "--parallel", "2", "img"},
	} {
		a := newTestApp(t)
		if code := a.main(args); code != 2 {
			t.Errorf("%q: code %d, stderr %q", args, code, a.err.String())
		}
		if !strings.HasPrefix(a.err.String(), "error: ") {
			t.Errorf("%q: stderr %q", args, a.err.String())
		}
	}
	a := newTestApp(t)
	a.main([]string{"rnu"})
	if !strings.Contains(a.err.String(), "did you mean run?") {
		t.Errorf("no suggestion: %q", a.err.String())
	}
}

// verdictIn reads the one JSON document that stdout must be.
func verdictIn(t *testing.T, a *testApp) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(a.out.String()), &v); err != nil {
		t.Fatalf("stdout is not one document: %v\n%s", err, a.out.String())
	}
	for _, key := range []string{"exit_source", "code", "remedy"} {
		if _, ok := v[key]; !ok {
			t.Errorf("no %s in %v", key, v)
		}
	}
	return v
}

func TestEveryFailureIsOneDocument(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "job.yaml")
	if err := os.WriteFile(bad, []byte("version: 1\nimage: x\ncomand: [a]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"a bad job file":     {"submit", bad, "-o", "json"},
		"no such file":       {"submit", bad + "x", "-o", "json"},
		"a bad range":        {"run", "-o", "json", "--array", "9-1", "img"},
		"a bad flag before":  {"run", "--none", "-o", "json", "img"},
		"a missing argument": {"inspect", "--output=json"},
		"no such job":        {"inspect", "nosuch", "-o", "jsonl"},
	} {
		a := newTestApp(t)
		newFakeNode(t, a, 1)
		code := a.main(args)
		v := verdictIn(t, a)
		if code == 0 || v["code"] != float64(code) || v["remedy"] == "" || v["exit_source"] != sourceLumbung || v["error"] == "" {
			t.Errorf("%s: code %d, %v", name, code, v)
		}
		if !strings.Contains(a.err.String(), "\n  try: ") {
			t.Errorf("%s: stderr %q", name, a.err.String())
		}
	}
}

func TestInterruptedIsOneDocument(t *testing.T) {
	a := newTestApp(t)
	newFakeNode(t, a, 1)
	a.signals <- os.Interrupt
	code := a.main([]string{"wait", "jabc", "-o", "json"})
	if v := verdictIn(t, a); code != exitInterrupt || v["code"] != float64(exitInterrupt) || v["error_code"] != "interrupted" || v["remedy"] == "" {
		t.Errorf("code %d, %v", code, v)
	}
	if got := a.err.String(); strings.Contains(got, "error:") {
		t.Errorf("somebody is told of their own ^C: %q", got)
	}
}

func TestFindingsEndWithTheContractsCode(t *testing.T) {
	ok, fail := client.Finding{Level: levelOK, What: "clock"}, client.Finding{Level: levelFail, What: "port", Remedy: "another --listen"}
	for name, c := range map[string]struct {
		list   []client.Finding
		code   int
		remedy string
	}{
		"sound":  {[]client.Finding{ok}, 0, ""},
		"broken": {[]client.Finding{ok, fail, {Level: levelFail, Remedy: "later"}}, exitFailed, "another --listen"},
	} {
		a := newTestApp(t)
		n := newFakeNode(t, a, 1)
		n.netcheck = client.Netcheck{Reachability: "public", Findings: c.list}
		if code := a.main([]string{"netcheck", "-o", "json"}); code != c.code {
			t.Errorf("%s: code %d", name, code)
		}
		v := verdictIn(t, a)
		if v["code"] != float64(c.code) || v["remedy"] != c.remedy || v["reachability"] != "public" || len(v["findings"].([]any)) != len(c.list) {
			t.Errorf("%s: %v", name, v)
		}
	}
	a := newTestApp(t)
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	code := a.main([]string{"doctor", "-o", "json", "--listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", taken.Addr().(*net.TCPAddr).Port)})
	if v := verdictIn(t, a); code != exitFailed || v["code"] != float64(exitFailed) || !strings.Contains(v["remedy"].(string), "--listen") || len(v["findings"].([]any)) < 4 {
		t.Errorf("code %d, %v", code, v)
	}
}
