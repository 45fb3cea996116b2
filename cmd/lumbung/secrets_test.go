package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

// A submission has the values, a quote has not; nothing that is said has one.
func TestSecretsGoWithTheSubmission(t *testing.T) {
	const fromEnv, fromFile, fromIn = "hunter2 env", "hunter2 file\n", "hunter2 in\n"
	t.Setenv("TOKEN", fromEnv)
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "db"), []byte(fromFile), 0o600))
	jobFile := filepath.Join(dir, "job.yaml")
	must(os.WriteFile(jobFile, []byte("version: 1\nimage: img\nsecrets: [TOKEN, {name: db.key, file: db}, {name: IN, file: '-'}]\n"), 0o600))
	want := protocol.Secrets{"TOKEN": []byte(fromEnv), "db.key": []byte(fromFile), "IN": []byte(fromIn)}
	flags := []string{"--secret", "TOKEN", "--secret", "db.key=" + filepath.Join(dir, "db"), "--secret", "IN=-", "img"}
	for name, c := range map[string]struct {
		args []string
		want protocol.Secrets
	}{
		"run":         {append([]string{"run", "-d", "-y"}, flags...), want},
		"submit":      {[]string{"submit", jobFile}, want},
		"dry run":     {append([]string{"run", "--dry-run"}, flags...), nil},
		"quote":       {append([]string{"quote"}, flags...), nil},
		"quoted file": {[]string{"quote", jobFile}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t)
			a.in = strings.NewReader(fromIn)
			n := newFakeNode(t, a, 1)
			if code := a.main(c.args); code != 0 {
				t.Fatalf("code %d: %s", code, a.err.String())
			}
			n.mu.Lock()
			got, spec, quoted := n.request.Secrets, n.request.Spec, n.quoted
			n.mu.Unlock()
			if c.want == nil {
				spec = quoted.Spec
			}
			if len(quoted.Secrets) > 0 {
				t.Error("the quote has values")
			}
			if !maps.EqualFunc(got, c.want, bytes.Equal) {
				t.Errorf("%q", slices.Collect(maps.Values(got)))
			}
			if names := []client.SecretSpec{{Name: "TOKEN"}, {Name: "db.key"}, {Name: "IN"}}; !slices.Equal(spec.Secrets, names) {
				t.Errorf("%+v", spec.Secrets)
			}
			if said := a.out.String() + a.err.String(); strings.Contains(said, "hunter2") {
				t.Errorf("it says %s", said)
			}
		})
	}
}

// What is wrong is told before the node is asked, and without anything that may
// be a value.
func TestSecretsThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"empty": 0, "large": protocol.MaxSecretBytes + 1, "half": protocol.MaxSecretBytes/2 + 1} {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte("h"), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"NOT_THERE_AT_ALL"}, "the secret NOT_THERE_AT_ALL: there is no environment variable of that name\n  try: export NOT_THERE_AT_ALL, or name the file"},
		{[]string{"A=hunter2"}, "the secret A: open the file that its value is in: no such file or directory\n  try: name a file"},
		{[]string{"A=" + dir + "/hunter2/x"}, "the secret A: open the file"},
		{[]string{"A=" + dir}, "the secret A: read its file: "},
		{[]string{"A=" + dir + "/empty"}, "the secret A is empty"},
		{[]string{"A=" + dir + "/large"}, "the secret A: its file has over 131072 bytes"},
		{[]string{"A=" + dir + "/half", "B=" + dir + "/half"}, "the secrets have over 131072 bytes in all"},
		{[]string{"A=-", "B=-"}, "the secrets A and B both come from stdin"},
		{[]string{"hunter2 hunter2"}, "--secret: want NAME or NAME=FILE"},
	} {
		a := newTestApp(t)
		a.in = strings.NewReader("in")
		args := []string{"run"}
		for _, s := range c.args {
			args = append(args, "--secret", s)
		}
		code := a.main(append(args, "img"))
		if said := a.err.String(); code == 0 || !strings.Contains(said, c.says) || strings.Contains(said, "hunter2") {
			t.Errorf("%q: code %d: %s", c.args, code, said)
		}
	}
	a := newTestApp(t)
	a.inTTY = true
	if code := a.main([]string{"run", "--secret", "A=-", "img"}); code != exitUsage || !strings.Contains(a.err.String(), "which is a terminal") {
		t.Errorf("code %d: %s", code, a.err.String())
	}
}

func TestInspectNamesSecrets(t *testing.T) {
	a := newTestApp(t)
	n := newFakeNode(t, a, 1)
	n.job(func(j *client.Job) { j.Spec.Secrets = []job.SecretSpec{{Name: "TOKEN"}} })
	if code := a.main([]string{"inspect", "jabc"}); code != 0 || !strings.Contains(strings.Join(strings.Fields(a.out.String()), " "), "secret TOKEN") {
		t.Errorf("code %d: %s%s", code, a.out.String(), a.err.String())
	}
}
