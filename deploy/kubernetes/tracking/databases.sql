-- One role a service: who serves the annotation page cannot read experiments, nor the other way round. Passwords come
-- from the environment, so that neither this file nor an argument holds one.
\set ON_ERROR_STOP on
\getenv mlflow MLFLOW_PASSWORD
\getenv annotations ANNOTATIONS_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE ROLE annotations LOGIN PASSWORD :'annotations';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE annotations OWNER annotations;
REVOKE CONNECT ON DATABASE mlflow, annotations FROM PUBLIC;
