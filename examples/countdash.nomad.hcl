# HashiCorp's count dashboard with Attaché in Envoy's place.
#
#   nomad job run examples/countdash.nomad.hcl      then open http://<any client>:9002
#
# Each Nomad client needs:
# - Docker, for the two services, and Nomad's CNI plugins, for the bridge network;
# - Attaché as /usr/local/bin/attache: the exec driver shows a task the host's /usr;
# - the consul binary on PATH: Nomad itself runs it before every sidecar, whichever that is;
# - a Consul agent whose HTTP API answers on the client's own address, not on loopback alone:
#   in its configuration  client_addr = "127.0.0.1 {{ GetPrivateIP }}".
#   Nomad puts Consul's HTTP socket into an allocation for Connect-native services only, and in a
#   bridge network 127.0.0.1 is the allocation itself. Whoever reaches that address reaches the API:
#   have ACLs on, or a firewall. With ACLs, the token that Nomad writes for the sidecar is used.
#
# If Consul speaks HTTPS there: CONSUL_HTTP_ADDR = "https://…:8501", and CONSUL_CACERT = a file below
# /usr, which the exec driver shows too.

job "countdash" {
  datacenters = ["*"]

  group "api" {
    network {
      mode = "bridge"
    }

    service {
      name = "count-api"
      port = "9001"

      connect {
        sidecar_service {}

        sidecar_task {
          driver = "exec"

          config {
            command = "/usr/local/bin/attache"
            args    = ["run"]
          }

          env {
            CONSUL_HTTP_ADDR = "http://${attr.unique.network.ip-address}:8500"
          }

          resources {
            cpu    = 100
            memory = 64
          }
        }
      }
    }

    task "api" {
      driver = "docker"

      config {
        image = "hashicorpdev/counter-api:v3"
      }

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }

  group "dashboard" {
    network {
      mode = "bridge"

      port "http" {
        static = 9002
        to     = 9002
      }
    }

    service {
      name = "count-dashboard"
      port = "http"

      connect {
        sidecar_service {
          proxy {
            upstreams {
              destination_name = "count-api"
              local_bind_port  = 8080
            }
          }
        }

        sidecar_task {
          driver = "exec"

          config {
            command = "/usr/local/bin/attache"
            args    = ["run"]
          }

          env {
            CONSUL_HTTP_ADDR = "http://${attr.unique.network.ip-address}:8500"
          }

          resources {
            cpu    = 100
            memory = 64
          }
        }
      }
    }

    task "dashboard" {
      driver = "docker"

      config {
        image = "hashicorpdev/counter-dashboard:v3"
      }

      env {
        COUNTING_SERVICE_URL = "http://${NOMAD_UPSTREAM_ADDR_count_api}"
      }

      resources {
        cpu    = 100
        memory = 64
      }
    }
  }
}
