package server_test

import (
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/taskerhq/tasker/server"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

// The documentation of the configuration is the help, between two lines of back quotes.
func TestConfigurationDocumentIsTheHelp(t *testing.T) {
	const path = "../docs/configuration.md"
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(body), "```text\n")
	help, after, closed := strings.Cut(rest, "```\n")
	if !found || !closed {
		t.Fatalf("%s holds no block of text", path)
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+"```text\n"+server.Help()+"```\n"+after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if help != server.Help() {
		t.Errorf("%s differs from `tasker serve --help`: run go test ./server -run %s -update", path, t.Name())
	}
}

// settings reads a configuration as `tasker serve` does.
func settings(t *testing.T, args []string, env map[string]string) (server.Config, error) {
	t.Helper()
	conf := server.Default()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	conf.Bind(flags)
	if err := flags.Parse(args); err != nil {
		return conf, err
	}
	if err := conf.ReadEnvironment(flags, func(name string) string { return env[name] }); err != nil {
		return conf, err
	}
	return conf, conf.Check()
}

func TestEveryFlagHasItsVariable(t *testing.T) {
	// A value that each flag takes and that is not its default.
	for _, want := range []struct {
		flag, value string
	}{
		{"listen", "127.0.0.1:1"},
		{"insecure", "true"},
		{"tls-cert", "c"},
		{"tls-key", "k"},
		{"tls-client-ca", "a"},
		{"reflection", "false"},
		{"database-url", "postgres://x"},
		{"auto-migrate", "true"},
		{"database-connections", "3"},
		{"database-hot-connections", "4"},
		{"notify", "false"},
		{"data-dir", "/d"},
		{"postgres-bin-dir", "/b"},
		{"embedded-download", "true"},
		{"shard", "7"},
		{"retention", "1h0m0s"},
		{"partition-interval", "48h0m0s"},
		{"call-timeout", "10s"},
		{"shutdown-timeout", "10s"},
		{"connection-age", "5m0s"},
		{"max-waiting", "5"},
		{"max-streams", "6"},
		{"log-level", "debug"},
		{"log-format", "json"},
		{"metrics-listen", "127.0.0.1:2"},
	} {
		variable := "TASKER_" + strings.ToUpper(strings.ReplaceAll(want.flag, "-", "_"))
		if !strings.Contains(server.Help(), "--"+want.flag+" ") || !strings.Contains(server.Help(), "[$"+variable+"]") {
			t.Errorf("the help lacks --%s or $%s", want.flag, variable)
		}
		conf := server.Default()
		flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		conf.Bind(flags)
		if err := conf.ReadEnvironment(flags, func(name string) string {
			if name == variable {
				return want.value
			}
			return ""
		}); err != nil {
			t.Errorf("$%s: %v", variable, err)
			continue
		}
		if got := flags.Lookup(want.flag).Value.String(); got != want.value || got == flags.Lookup(want.flag).DefValue {
			t.Errorf("$%s=%s gives %s", variable, want.value, got)
		}
	}
	conf := server.Default()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	conf.Bind(flags)
	n := 0
	flags.VisitAll(func(*pflag.Flag) { n++ })
	if n != 25 {
		t.Errorf("%d flags, and this test knows 25: tell it the new ones", n)
	}
}

func TestAFlagWinsOverItsVariable(t *testing.T) {
	conf, err := settings(t, []string{"--retention=2h"}, map[string]string{"TASKER_RETENTION": "1h", "TASKER_SHARD": "3"})
	if err != nil || conf.Retention != 2*time.Hour || conf.Shard != 3 {
		t.Errorf("retention %v, shard %d, %v", conf.Retention, conf.Shard, err)
	}
}

func TestSettingsThatCannotBe(t *testing.T) {
	for name, args := range map[string][]string{
		"--tls-key":                  {"--tls-cert=c"},
		"--tls-cert":                 {"--tls-client-ca=c"},
		"--database-connections":     {"--database-connections=0"},
		"--database-hot-connections": {"--database-hot-connections=1001"},
		"--shard":                    {"--shard=512"},
		"--retention":                {"--retention=-1s"},
		"--partition-interval":       {"--partition-interval=23h59m"},
		"--call-timeout":             {"--call-timeout=11m"},
		"--shutdown-timeout":         {"--shutdown-timeout=21s"},
		"--connection-age":           {"--connection-age=1s"},
		"--max-waiting":              {"--max-waiting=0"},
		"--max-streams":              {"--max-streams=0"},
		"--log-level":                {"--log-level=loud"},
		"--log-format":               {"--log-format=xml"},
		"--listen":                   {"--listen="},
	} {
		if _, err := settings(t, args, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := settings(t, nil, map[string]string{"TASKER_SHARD": "seven"}); err == nil || !strings.Contains(err.Error(), "$TASKER_SHARD") {
		t.Errorf("$TASKER_SHARD=seven: %v", err)
	}
}
