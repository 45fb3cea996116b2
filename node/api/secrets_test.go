package api

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/lumbung-net/lumbung/node/client"
	"github.com/lumbung-net/lumbung/protocol"
)

// Values reach the backend with a submission alone.
func TestSecretsReachTheBackend(t *testing.T) {
	r := start(t)
	var got protocol.Secrets
	r.fake.hooks.submit = func(_ context.Context, r client.SubmitRequest, _ func(client.Progress)) (client.Job, error) {
		got = r.Secrets
		return client.Job{ID: "j1", Spec: r.Spec}, nil
	}
	req := submitRequest()
	req.Spec.Secrets = append(req.Spec.Secrets, client.SecretSpec{Name: "TOKEN", File: "/home/me/token"})
	req.Secrets = protocol.Secrets{"TOKEN": {0, 255, 'x'}}
	j, err := r.Submit(t.Context(), req, nil)
	if err != nil || string(got["TOKEN"]) != "\x00\xffx" || len(j.Spec.Secrets) != 1 || j.Spec.Secrets[0] != (client.SecretSpec{Name: "TOKEN"}) {
		t.Errorf("%v: %q, %+v", err, got["TOKEN"], j.Spec.Secrets)
	}
	if req.Secrets = (protocol.Secrets{"TOKEN": []byte("x"), "E": nil}); true {
		if _, err := r.Submit(t.Context(), req, nil); problemIn(t, err).Status != 422 {
			t.Errorf("an empty one: %v", err)
		}
	}
	for name, quote := range map[string]func(){
		"the client": func() {
			if _, err := r.Quote(t.Context(), req, nil); err != nil { // which would be refused if it had the empty one
				t.Error(err)
			}
		},
		"another": func() {
			body := `{"spec":{"image":"x","secrets":[{"name":"A"}]},"dir":"/","secrets":{"A":"eA=="}}`
			if status, _, text := do(t, r.plain(t), "POST", "http://lumbung/v1/quote", body, http.Header{"Content-Type": {"application/json"}}); status != 200 {
				t.Errorf("%d %s", status, text)
			}
		},
	} {
		if quote(); !strings.HasSuffix(r.fake.lastCall(), "with 0 secrets") {
			t.Errorf("%s quotes %s", name, r.fake.lastCall())
		}
	}
}

// However wrong a request with values is, no answer repeats them.
func TestProblemsRepeatNoSecret(t *testing.T) {
	r := start(t)
	const value = "hunter2hunter2"
	coded := base64.StdEncoding.EncodeToString([]byte(value))
	for name, secrets := range map[string]string{
		"no base64": `{"A":"` + value + `?"}`, "a list": `{"A":["` + value + `"]}`, "an object": `{"A":{"x":"` + value + `"}}`, "a number": `{"A":48151623}`,
		"of secrets a list": `["` + value + `"]`, "text": `"` + value + `"`, "bad name": `{"../` + value + `":"` + coded + `"}`,
		"not closed": `{"A":"` + coded + `"`, "twice": `{"A":"` + coded + `","A":1}`, "empty": `{"A":"` + coded + `","B":""}`,
		"large": `{"A":"` + coded + strings.Repeat("aHVu", 70_000) + `"}`,
	} {
		body := `{"spec":{"image":"x"},"dir":"/","secrets":` + secrets + `}`
		for _, path := range []string{"/v1/jobs", "/v1/quote"} {
			status, _, text := do(t, r.plain(t), "POST", "http://lumbung"+path, body, http.Header{"Content-Type": {"application/json"}})
			if status < 400 || status > 499 || strings.Contains(text, "hunter2") || strings.Contains(text, coded[:12]) || strings.Contains(text, "48151623") {
				t.Errorf("%s: %d %s", name, status, text)
			}
		}
	}
	if c := r.fake.lastCall(); c != "" {
		t.Errorf("the backend heard %q", c)
	}
}
