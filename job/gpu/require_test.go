package gpu

import (
	"strings"
	"testing"
)

// cudaImage is what nvidia/cuda:12.4.1 says.
const cudaImage = "cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=unknown,driver>=470,driver<471 brand=nvidia,driver>=470,driver<471 " +
	"brand=tesla,driver>=535,driver<536 brand=unknown,driver>=535,driver<536"

func TestRequire(t *testing.T) {
	card := func(driver, cuda, brand, compute string) GPU {
		return GPU{Driver: driver, CUDA: cuda, Brand: brand, Compute: compute}
	}
	new4090 := card("580.159.04", "13.0", "geforce", "8.9")
	old4090 := card("535.129.03", "12.2", "geforce", "8.9")
	oldTesla := card("535.129.03", "12.2", "tesla", "8.0")
	for _, c := range []struct {
		text string
		card GPU
		want bool
	}{
		{"", GPU{}, true},
		{"   ", old4090, true},
		{"cuda>=12.4", new4090, true},
		{"cuda>=12.4", old4090, false},
		{"cuda>=13.0", new4090, true},
		{"cuda>13.0", new4090, false},
		{"cuda>=13", new4090, true},
		{"cuda=13", new4090, true},
		{"cuda!=13.0", new4090, false},
		{"cuda<12.10", old4090, true}, // numbers, not text
		{"cuda<=12.2", old4090, true},
		{"driver>=535", old4090, true},
		{"driver>=535.129.03", old4090, true},
		{"driver>=535.129.4", old4090, false},
		{"driver>=535,driver<536", old4090, true},
		{"driver>=535,driver<536", new4090, false},
		{"brand=tesla", old4090, false},
		{"brand!=tesla", old4090, true},
		{"brand=geforce,arch>=8.9", old4090, true},
		{"arch>=9.0", old4090, false},
		{"arch>=9.0 arch<9", old4090, true},
		{cudaImage, new4090, true},
		{cudaImage, old4090, false}, // a consumer card has no forward compatibility
		{cudaImage, oldTesla, true},
		{"cuda>=12", GPU{}, false}, // nothing known is not enough
		{"driver<600", GPU{}, false},
		{"cuda>=12", card("580", "newest", "", ""), false},
	} {
		r, err := ParseRequire(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if got := r.MetBy(c.card); got != c.want {
			t.Errorf("%q met by driver %s, CUDA %s, %s: %v", c.text, c.card.Driver, c.card.CUDA, c.card.Brand, got)
		}
	}
}

func TestRequireErrors(t *testing.T) {
	for text, want := range map[string]string{
		"cuda":                           "compares nothing",
		"cuda>=":                         "no version",
		"cuda>=12.x":                     "no version",
		"cuda>=-1":                       "no version",
		"cuda=>12":                       "no version",
		"cuda!12":                        "no comparison",
		"cuda>=12,,driver>1":             "compares nothing",
		"cuda>=12,":                      "compares nothing",
		"brand>=tesla":                   "no comparison of a brand",
		"brand=":                         "no comparison of a brand",
		"brand==x":                       "no comparison of a brand",
		"memory>=12":                     "not known",
		">=12":                           "not known",
		"driver>=1.2.3.4.5.6.7.8.9":      "no version",
		strings.Repeat("cuda>=1 ", 1000): "over 2048",
	} {
		if r, err := ParseRequire(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, %v; want an error with %q", text, r, err, want)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for _, c := range []struct {
		have, want string
		ok         bool
	}{{"12.4", "12.4", true}, {"12.10", "12.4", true}, {"12", "12.0", true}, {"11.8", "12", false}, {"", "12", false}, {"12", "", false}} {
		if AtLeast(c.have, c.want) != c.ok {
			t.Errorf("%q at least %q: %v", c.have, c.want, !c.ok)
		}
	}
}

func FuzzParseRequire(f *testing.F) {
	for _, s := range []string{cudaImage, "", "cuda>=12.4", "brand!=x arch<9,driver=1", "cuda>=,", "\x00", "cuda!=1 cuda<=2"} {
		f.Add(s)
	}
	card := GPU{Driver: "580.159.04", CUDA: "13.0", Brand: "tesla", Compute: "9.0"}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRequire(text)
		if err != nil {
			return
		}
		again, err := ParseRequire(r.String())
		if err != nil || again.String() != r.String() || again.MetBy(card) != r.MetBy(card) {
			t.Errorf("%q is %q, and that %q (%v)", text, r, again, err)
		}
	})
}
