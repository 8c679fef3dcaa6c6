package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// certificate writes a certificate for 127.0.0.1 that vouches for itself, with its key.
func certificate(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(file, kind string, body []byte) string {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: body}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", private)
}

func TestEncryptedConnections(t *testing.T) {
	p := newPerson(t)
	serverCert, serverKey := certificate(t, "server")
	clientCert, clientKey := certificate(t, "client")
	// A second server on the database of the first.
	second, err := startServer(shared.dataDir, "127.0.0.1:0", "--tls-cert", serverCert, "--tls-key", serverKey, "--tls-client-ca", clientCert)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.end(syscall.SIGTERM); err != nil {
			t.Errorf("the server ended with %v: %s", err, second.stderr)
		}
	})
	p.env["TASKER_TIMEOUT"] = "10s"
	p.env["TASKER_ADDRESS"] = second.address
	id := strings.TrimSpace(p.ok("submit", "-f", p.file("one.yaml", "steps: [{name: one}]\n"),
		"--ca-cert", serverCert, "--client-cert", clientCert, "--client-key", clientKey))
	p.refused("no server answers", "tasks")
	p.refused("certificate", "tasks", "--tls")
	// The server hangs up on a client without a certificate; whether its reason arrives first is a race.
	p.refused("no server answers", "tasks", "--ca-cert", serverCert)
	p.refused("certificate", "tasks", "--ca-cert", clientCert, "--client-cert", clientCert, "--client-key", clientKey)
	// The same task, by way of the first server.
	p.env["TASKER_ADDRESS"] = shared.address
	p.ok("task", "get", id)
}

func TestSeveralAddresses(t *testing.T) {
	p := newPerson(t)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := gone.Addr().String()
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	for _, addresses := range []string{nobody + "," + shared.address, shared.address + ", " + nobody} {
		p.env["TASKER_ADDRESS"] = addresses
		p.ok("tasks")
	}
}
